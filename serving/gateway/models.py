"""Which model class serves a request, from the name that the client asked for.

A class answers to its own name and to its aliases. A name that nobody serves and a class that the tenant may not use are
refused alike, so that refusals do not tell what exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.billing.tariffs import ListPrice, PriceList, Rate
from policies.routing.model_choice import SIZES
from serving.gateway import errors
from serving.gateway.tenants import Tenant
from serving.settings import ServedModel


class Models:
    """The model classes of this region."""

    def __init__(self, served: Sequence[ServedModel]) -> None:
        self.served = tuple(served)
        self._prices = {model.model_class: PriceList([ListPrice(**dict(price)) for price in model.prices]) for model in served}
        self._by_name = {name: model for model in served for name in (model.model_class, *model.aliases)}

    @property
    def smallest(self) -> ServedModel:
        """The smallest class that is served."""
        return min(self.served, key=lambda model: SIZES.index(model.model_class))

    def choose(self, name: str, tenant: Tenant) -> ServedModel:
        """The class to serve `name` with.

        Raises:
            ApiError: `model_not_found`.
        """
        model = self._by_name.get(name)
        if model is None or not tenant.may_use(model.model_class):
            raise errors.model_not_found(name)
        return model

    def rate(self, model: ServedModel, opened_at_ms: int) -> Rate:
        """What a request to `model` pays that is opened at this moment."""
        return self._prices[model.model_class].rate(opened_at_ms)

    def available_to(self, tenant: Tenant) -> list[ServedModel]:
        """The classes that `tenant` may use."""
        return [model for model in self.served if tenant.may_use(model.model_class)]
