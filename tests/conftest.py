"""Which examples Hypothesis plays: in `make test` the same ones in every run, in `make test-slow` new ones each time.

A test that draws new examples in every run judges chance and not the change at hand: what nobody has touched fails
for who comes by. Finding new examples is the work of the exploring form (TIERSTORE_EXPLORE=1); what it finds becomes
an example of its test.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.kit import unsteady

# no deadline and no check of speed: the machine that runs the tests may stand still at any moment
settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)  # fmt: skip
settings.register_profile(
    "exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, max_examples=1000
)
settings.load_profile("exploring" if os.environ.get("TIERSTORE_EXPLORE") else "steady")

if "TIERSTORE_UNSTEADY" in os.environ:
    unsteady.begin(int(os.environ["TIERSTORE_UNSTEADY"]))
