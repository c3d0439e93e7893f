"""An interrupt interrupts: a shell that starts the tests in the background has it ignored, which is inherited."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
