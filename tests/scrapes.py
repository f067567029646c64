"""Reading what `/metrics` says, by the parsers of prometheus-client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one answer."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Return one sample. Raises KeyError where there is none."""
        return self.samples[name, frozenset(labels.items())]

    def names(self) -> set[str]:
        """Return the names of all samples, as queries write them."""
        return {name for name, _ in self.samples}

    def labels(self) -> set[tuple[str, str]]:
        """Return every label with its value."""
        return {pair for _, labels in self.samples for pair in labels}


def read_scrape(text: str, content_type: str = "text/plain") -> Scrape:
    """Parse an answer in the format that its type names; each sample must be there once."""
    read = read_openmetrics if content_type.startswith("application/openmetrics-text") else read_text
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in read(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return Scrape(samples)
