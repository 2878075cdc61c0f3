"""What handstamp costs: ``python -m benchmarks hit|miss|revoke|touch [--json]``.

Every benchmark runs what it compares in one process and in turns (A B C A B C …), and
takes each ratio within a turn, so that a machine that is slow for a second is slow for all
of them. Compare the ratios; the absolute figures belong to the machine.
"""
