"""What handstamp costs: ``python -m benchmarks hit|migrate|miss|revoke|touch|wsgi``.

Every benchmark runs what it compares in one process and in turns (A B C A B C …), and
takes each ratio within a round, so that a slow second of the machine slows all of them.
Compare the ratios; the absolute figures belong to the machine.
"""
