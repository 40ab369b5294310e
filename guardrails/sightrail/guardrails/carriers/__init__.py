"""What may hold a picture, and the one loop over it: find, decode, ask, decide, put back.

``carrier`` says what a found picture is, what its payload is worth and what mark it is left with,
``media`` and ``kinds`` read the block forms of the providers, ``walk`` goes through values of any
framework and through texts, ``loop`` does the work. A framework brings its own walk and marks, and
nothing else: limits, deadline, monitoring, tracing and logging are the loop's.
"""
