// Eight devices for tests/more_devices.py: torch's engine makes a thread for each at the first
// gradient, and what can be written in Python says that there is one.
#include <c10/core/impl/FakeGuardImpl.h>

namespace {
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::FakeGuardImpl<c10::DeviceType::PrivateUse1>)
}
