"""Own experts: a router as a rank sees it that holds some of a layer's experts whole."""

from collections.abc import Callable

from torch import Tensor

Route = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def own_experts(route: Route, first: int, count: int) -> Route:
    """Return a router by which experts other than `count` from `first` on have the number `count`
    and no weight.
    """

    def localize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, experts = route(x)
        local = experts - first
        is_other = (local < 0) | (local >= count)
        return (logits, weights.masked_fill(is_other, 0), local.masked_fill(is_other, count))

    return localize
