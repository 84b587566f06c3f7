"""The caller as the rest of the gateway sees it: a tenant, never a key."""

from __future__ import annotations

from typing import NewType

import msgspec

TenantId = NewType("TenantId", str)
DEFAULT_TENANT = TenantId("default")


class Principal(msgspec.Struct, frozen=True):
    """Who a request acts for. Every query made on its behalf is scoped to `tenant`."""

    tenant: TenantId
