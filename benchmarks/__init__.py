"""Speed races against the libraries people use today: `make bench`.

Threads of every contender wait for one another as those of `fsl run` do. By default they spin, and
beside other work a race would then measure little else.
"""

from fsl_core.engine.environment import prepare_process

prepare_process()
