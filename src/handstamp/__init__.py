"""Session middleware for web apps that already have a sessions table in PostgreSQL.

Import :class:`Sessions` and its settings from here, the middleware from
``handstamp.asgi`` or from the module named after your framework.
"""

from __future__ import annotations

from handstamp.config import Cookies as Cookies
from handstamp.config import Policy as Policy
from handstamp.config import TrustedProxies as TrustedProxies
from handstamp.core.models import Authenticated as Authenticated
from handstamp.core.models import Client as Client
from handstamp.core.models import Issued as Issued
from handstamp.core.models import Session as Session
from handstamp.engine.dispatch import Stats as Stats
from handstamp.engine.sessions import Sessions as Sessions
from handstamp.errors import AuthenticationRequired as AuthenticationRequired
from handstamp.errors import ConfigError as ConfigError
from handstamp.errors import CrossSiteRequest as CrossSiteRequest
from handstamp.errors import FreshLoginRequired as FreshLoginRequired
from handstamp.errors import HandstampError as HandstampError
from handstamp.errors import LoginRefused as LoginRefused
from handstamp.errors import SessionsUnavailable as SessionsUnavailable
from handstamp.errors import StepUpRequired as StepUpRequired
from handstamp.stores.memory import MemoryStore as MemoryStore
from handstamp.stores.shapes import ULID_HASHED as ULID_HASHED
from handstamp.stores.shapes import UUID_PLAIN as UUID_PLAIN
from handstamp.stores.shapes import TableShape as TableShape
from handstamp.stores.shapes import UsersTable as UsersTable
from handstamp.stores.table import TableStore as TableStore

__all__ = (
    "ULID_HASHED",
    "UUID_PLAIN",
    "Authenticated",
    "AuthenticationRequired",
    "Client",
    "ConfigError",
    "Cookies",
    "CrossSiteRequest",
    "FreshLoginRequired",
    "HandstampError",
    "Issued",
    "LoginRefused",
    "MemoryStore",
    "Policy",
    "Session",
    "Sessions",
    "SessionsUnavailable",
    "Stats",
    "StepUpRequired",
    "TableShape",
    "TableStore",
    "TrustedProxies",
    "UsersTable",
)
__version__ = "0.1.0"
