"""The order in which weights are stored in memory."""

from torch import nn


def store_by_columns(model: nn.Module) -> None:
    """Store the weights of each linear layer column by column: the same shape and numbers, in
    another order in memory.

    Products of one row with such a matrix are slightly faster on CPUs: a step of the shipped target
    took 9.7 ms instead of 10.3 ms (2 cores). Weights that are shared with an embedding keep their
    order.

    All other parameters are copied too. Loaded parameters are pages of the file, mapped into
    memory. As long as a single one is in use, the whole file stays in memory next to the copies.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for parameter in model.parameters():
        if id(parameter) in linear - shared:
            parameter.data = parameter.data.t().contiguous().t()
        else:
            parameter.data = parameter.data.clone()
