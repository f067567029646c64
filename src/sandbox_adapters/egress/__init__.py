"""The egress proxy: HTTP, CONNECT and SOCKS5 out of one sandbox, by one set of rules.

rules, hosts, addresses, requests, tls_hello, replies     pure: what is asked for, and whether it may be
resolver, streams, socks, tunnel, http_front, http_forward  bytes in and out
gate                                                       the one decision for every way in
proxy, connection                                          the life of a listener and of a connection
"""

from sandbox_adapters.egress.addresses import AddressPolicy
from sandbox_adapters.egress.environment import proxy_environment
from sandbox_adapters.egress.http_front import HeaderInjector
from sandbox_adapters.egress.proxy import EgressProxy
from sandbox_adapters.egress.resolver import Lookup
from sandbox_adapters.egress.rules import Decision, EgressRules
from sandbox_adapters.egress.values import Denial, EgressLimits, EgressUsage

__all__ = [
    "AddressPolicy",
    "Decision",
    "Denial",
    "EgressLimits",
    "EgressProxy",
    "EgressRules",
    "EgressUsage",
    "HeaderInjector",
    "Lookup",
    "proxy_environment",
]
