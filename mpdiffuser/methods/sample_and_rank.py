"""Sample and rank, as in Diffusion Veteran (Lu et al. 2025): a critic chooses among many unguided plans."""

from mpdiffuser.methods.base import Baseline, sampler_section
from mpdiffuser.methods.d_mpc import CRITIC
from mpdiffuser.methods.decision_diffuser import INVERSE, STATE_PLANNER, StateSampler


class SampleAndRank(Baseline):
    """Plans only states; an inverse dynamics model gives the actions. The critic chooses the plan."""

    name = "sample_and_rank"
    label = "sample and rank (as Diffusion Veteran)"
    color = ("#8c5a3c", "#cf9c7c")
    summary = "A critic chooses one of fifty unguided plans of the states; inverse dynamics gives the actions."
    order = 24
    needs_rewards = True
    models = (STATE_PLANNER, INVERSE, CRITIC)
    roles = {"planner": "state_planner", "inverse": "inverse", "ranker": "critic"}  # noqa: RUF012
    settings = sampler_section(candidates=50)
    sampler_class = StateSampler
