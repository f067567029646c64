"""The egress proxy: HTTP, CONNECT and SOCKS5 out of one sandbox, by one set of rules.

rules, hosts, addresses, requests, tls_hello, replies     pure: what is asked for, and whether it may be
own_addresses                                              which addresses are this machine's
resolver, static_lookup, streams, socks, tunnel, http_front, http_forward  bytes in and out
secrets, operator_secrets                                  the operator's header fields, and who gets them where
authority, trust, interception, tls_stream                 where TLS ends for them; authority alone needs cryptography,
                                                           whose import takes long, and is imported where it is used
gate                                                       the one decision for every way in
proxy, connection                                          the life of a listener and of a connection
"""

from sandbox_adapters.egress.addresses import AddressPolicy
from sandbox_adapters.egress.environment import proxy_environment
from sandbox_adapters.egress.interception import HeaderInjector, Interception
from sandbox_adapters.egress.operator_secrets import Injection, OperatorSecrets
from sandbox_adapters.egress.own_addresses import is_own_address
from sandbox_adapters.egress.proxy import EgressProxy
from sandbox_adapters.egress.resolver import Lookup, LookupThreads, SystemLookup
from sandbox_adapters.egress.rules import DEFAULT_PORTS, Decision, EgressRules
from sandbox_adapters.egress.secrets import Secret, SecretHeaders, colliding
from sandbox_adapters.egress.static_lookup import StaticLookup
from sandbox_adapters.egress.values import Denial, EgressLimits, EgressUsage

__all__ = [
    "DEFAULT_PORTS",
    "AddressPolicy",
    "Decision",
    "Denial",
    "EgressLimits",
    "EgressProxy",
    "EgressRules",
    "EgressUsage",
    "HeaderInjector",
    "Injection",
    "Interception",
    "Lookup",
    "LookupThreads",
    "OperatorSecrets",
    "Secret",
    "SecretHeaders",
    "StaticLookup",
    "SystemLookup",
    "colliding",
    "is_own_address",
    "proxy_environment",
]
