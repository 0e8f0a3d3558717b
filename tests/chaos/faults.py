"""All faults of the campaign, in the order of its table."""

from __future__ import annotations

from tests.chaos.faults_cluster import OF_THE_CLUSTER
from tests.chaos.faults_jobs import OF_JOBS
from tests.chaos.faults_orch import OF_ORCH

FAULTS = (*OF_JOBS, *OF_THE_CLUSTER, *OF_ORCH)
