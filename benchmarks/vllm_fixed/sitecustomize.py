"""On PYTHONPATH of a vLLM 0.32 for CPUs this replaces one function, to show that it is the one at fault.

`_expand_kernel_impl` (vllm/utils/cpu_triton_utils.py) copies a number of each request, its temperature, top-k or
top-p, to each of the request's drafted tokens. Its C++ kernel takes int64, so the output is converted first. The
conversion makes a copy, which is filled and then dropped. The caller continues with memory that was never written, and
a temperature of 0.8 would be cut to 0. Drafted tokens are then compared with a target at an arbitrary temperature.
Greedy requests do not use this function. vllm-project/vllm #55005, unchanged in 0.33.
"""

import importlib.abc
import importlib.util
import sys

NAME = "vllm.utils.cpu_triton_utils"


def expand(output, given, until, replace_from, replace_to, MAX_NUM_TOKENS=None):
    """output[i]: the number of the request that token i belongs to; `replace_from` becomes `replace_to`."""
    del MAX_NUM_TOKENS
    counts = until.diff(prepend=until.new_zeros(1)).long()
    spread = given.repeat_interleave(counts)
    output.copy_(spread.masked_fill(spread == replace_from, replace_to))


class Fixing(importlib.abc.MetaPathFinder):
    """Loads the module as it is, then replaces the function."""

    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module._expand_kernel_impl = expand

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Fixing())
