"""Several methods on the same data, rewards and held-out prompts, each with several seeds.

<output>/<method>/seed<k>/      the folder of one sweep
<output>/failed/<method>-seed<k>.json
<output>/comparison.json, comparison.csv, comparison.png, comparison.md
"""

from __future__ import annotations

from modpo.comparison.run import run_comparison

__all__ = ["run_comparison"]
