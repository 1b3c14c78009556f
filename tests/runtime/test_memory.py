"""A memory report adds up."""

from __future__ import annotations

from runtime.memory import MemoryReport, MemoryUse


def test_totals_are_by_place() -> None:
    uses = (
        MemoryUse("weights", 100, "device"),
        MemoryUse("graphs", 20, "device", exact=False),
        MemoryUse("ring", 3, "host"),
    )
    report = MemoryReport(uses)
    assert (report.device_bytes, report.host_bytes, report.total_bytes) == (120, 3, 123)
    assert [use.exact for use in report.uses] == [True, False, True]
