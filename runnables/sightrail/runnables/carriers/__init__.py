"""Every way a picture travels through LangChain: found, handed to intake, put back in its form.

``carrier`` says what a found picture is, ``addresses`` what its payload is worth, ``media`` reads
the block forms of LangChain and of the providers, ``walk`` finds them in whole values.
"""

from .carrier import Carrier
from .tracked_walk import Stamp
from .walk import Walk

__all__ = ["Carrier", "Stamp", "Walk"]
