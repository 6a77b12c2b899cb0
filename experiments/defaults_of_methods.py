"""The sections of a configuration that belong to one method, or to a family of methods.

As in `configs/base.py`: every key, its default, what it means and, after a dash, why it is
that, with figures that are read as there.
"""

from ml_collections import ConfigDict


def section(**values: object) -> ConfigDict:
    """A section of a configuration."""
    return ConfigDict(values)


def ipf() -> ConfigDict:
    """Iterative proportional fitting, and `dsb`, `sde` and `dsbm`, which are settings of it."""
    return section(
        iterations=5,  # pairs of half-steps
        forward_steps=1000,  # gradient steps of each forward half-step
        # gradient steps of each backward half-step; all at the end with semi_discrete
        backward_steps=200,
        # auto | likelihood | bridge_matching | mean_matching | drift_matching |
        # sde_likelihood | log_variance | trajectory_balance | semi_discrete | hybrid; auto
        # takes bridge_matching where the pinned end gives samples (likelihood if it is not
        # re-anchored), semi_discrete where it gives an energy (log_variance for the backward
        # half-step if the forward one is semi_discrete)
        # - moons .16 with either loss that learns the opposite process, .112 with hybrid; from
        # data to data .129 with bridge_matching, .161 with likelihood
        forward_loss="auto",  # pinned end: the target
        backward_loss="auto",  # pinned end: the source
        # none | backward | forward | both: the likelihood half-steps that rejoin the endpoints
        # of their paths by the reference's pinned bridge
        # - without it the half-steps' errors add up and the pair drifts off
        reanchor="both",
        # reference | lightsb: what both processes are at first, and what their networks change
        # from then on; lightsb, between sampled ends, is fitted from either end before the
        # first half-step, as the section light says, but for backward_steps
        # - from data to data .073 after 600 gradient steps and .072 after 1500 with lightsb,
        # 1.5 and .23 without; two moons after 1500: .071 and .25, and of six Gaussians instead
        # of fifty, which by themselves are 1.2 away, .12
        start_from="reference",
        # reference | independent: the ends that the first bridge-matching half-step couples -
        # the reference's are those of IPF, independent ones of iterative Markovian fitting
        first_coupling="reference",
        # exact | hutchinson: the divergence in the loss sde_likelihood, by a derivative along
        # each axis or along one random sign vector, which is noisier
        divergence="exact",
        # batches of the opposite process's paths that a half-step of samples keeps and draws
        # its own from; 0: each is simulated anew
        cached_batches=0,
        # gradient steps after which those are simulated anew, a divisor of forward_steps and
        # backward_steps
        cache_every=100,
        # a half-step goes on from the parameters that it had before - moons .50 without
        warm_start=True,
        # N: paths that share a start, in the energy losses - between the variance of few paths
        # and the few starts of many: moons .131, .114, .110, .113 for 2, 4, 8, 16
        paths_per_start=8,
        likelihood_batch_size=0,  # paths of a half-step from samples; 0: batch_size
        # M: points of the other end behind a semi-discrete potential, on each device - more
        # than the plane needs (moons .104 with 256), for the sake of small ε and many
        # dimensions
        num_anchors=1024,
        # hybrid: effective anchors below which a gradient step turns to the learned opposite
        # process, and the loss to log_variance - dimension 16, ε = 0.1: .006 in closed form,
        # .019 after a hand-over at nine anchors
        min_anchors=4.0,
        use_ema_opposite=True,  # draw the opposite process from its averaged parameters
    )


def light() -> ConfigDict:
    """LightSB, and the start of ipf from it."""
    return section(
        num_components=50,  # Gaussians in the potential
        # the variance that they start with, in units of the reference's over [0, T], ε
        init_share=0.1,
        # gradient steps of the potential - moons to samples of the ring: 1000 end within 1e-4
        # nats of 3000
        steps=1000,
        # gradient steps of the backward process, which is fitted to the finished plan
        backward_steps=1000,
        batch_size=1024,  # samples of each end in a gradient step of the potential
        # of the potential, by Adam, at the peak of its cosine schedule; in units of x for the
        # centres - dimension 16 after 1000 steps: 0.002 nats from the bridge, 0.006 with 1e-2
        learning_rate=3e-2,
    )


def matching() -> ConfigDict:
    """Coupled minibatches and a regression: `sf2m`, `cfm` and `eot`."""
    return section(
        num_steps=6000,  # gradient steps, as many as ipf takes
        # auto | independent | entropic | exact: how a minibatch of both ends is paired; auto
        # takes entropic for sf2m and eot, whose plan tends to the bridge's as the batch grows,
        # and exact for cfm
        coupling="auto",
        coupling_epsilon_scale=1.0,  # ε of entropic, in units of the reference's variance(0, T)
        # uniform | grid: times of sf2m and cfm, evenly spread or as dense as those of the grid
        times="uniform",
        # times in a gradient step, shared by all pairs of the batch; with snapshots spread
        # evenly over the legs from one to the next, rounded up
        num_times=20,
        score_weight=1.0,  # factor of the score's loss in sf2m
        path_std=0.01,  # standard deviation around the straight lines of cfm
    )


def enot() -> ConfigDict:
    """Entropic neural optimal transport."""
    return section(
        num_steps=5000,  # gradient steps of the process and the potential together
        backward_steps=1000,  # of the backward process, which is fitted to the finished one
        inner_steps=10,  # of the process, for one of the potential
    )


def sampler() -> ConfigDict:
    """Diffusion samplers."""
    return section(
        num_steps=6000,  # gradient steps
        # log_variance | trajectory_balance | subtrajectory_balance | path_kl: the first three
        # of paths two of which share a start, of exploration.off_policy_ratio one of the two
        # from the buffer; the last one of its own paths, differentiated through them
        loss="log_variance",
        decay=0.9,  # of the weight of a piece with its length, per step: subtrajectory_balance
        tracked_steps=0,  # steps that path_kl is differentiated through; 0: all of them
        # last | random: these are the last steps, or a window that each batch draws - biased,
        # or noisy (benchmarks/results/truncated_gradients.md)
        window="last",
    )


def adjoint() -> ConfigDict:
    """Adjoint methods: `asbs`, `adjoint_sampling` and `bms`."""
    return section(
        iterations=25,  # pairs of stages, or one stage each where no corrector is learned
        forward_steps=200,  # gradient steps of each stage of the forward process
        # gradient steps of each stage of the corrector, where it is learned
        corrector_steps=100,
        backward_steps=1000,  # gradient steps of the backward process, at the end
        # auto | learned | semi_discrete: of asbs - auto takes learned, a network for the score
        # of the source's potential at the end; semi_discrete has it in closed form
        # auto | reference | none: of adjoint_sampling - auto takes reference, the score of the
        # reference's law at the end, right from a fixed start; none is plain control
        corrector="auto",
        rollout_every=20,  # gradient steps after which paths are simulated for the replay
        rollout_size=512,  # how many
        replay_size=4096,  # pairs of ends to draw from, per device
        # of semi_discrete: share of pairs that come from particles of the target - the
        # regression is on whatever law these have: right where they have settled alone
        off_policy_ratio=0.0,
        num_anchors=1024,  # M of semi_discrete and reference, on each device
        max_gradient=1000.0,  # largest norm of the energy's gradient
        # λ, about the curvature of the target's energy: the pull to a path's own end is given a
        # share that cancels the noise of that energy's gradient - 0 as published; Gaussian to
        # ring after 3000 steps, semi_discrete: .25 with 0, .15 with 20
        curvature=0.0,
        # η: weight of the previous iterate beside the target - bms was published with 0 and 10
        damping=0.0,
    )


def fine_tuning() -> ConfigDict:
    """The steering of a finished run by a reward."""
    return section(
        base="",  # workdir of a finished run, of the same ends, reference and grid
        # of the files of its newest checkpoint; filled in by the runner, so that a run goes on
        # with no other base
        base_digest="",
        # relative_trajectory_balance | log_variance | control | policy_gradient |
        # adjoint_matching, see d2ejax.algorithms.fine_tuning; the first asks for a base that
        # forgets its start, a diffusion model
        loss="relative_trajectory_balance",
        reward=section(name="gaussian", options=section()),  # an endpoint
        temperature=1.0,  # the reward is that endpoint's log-density over this, in nats
        num_steps=2000,  # gradient steps
        num_paths=8,  # that share their start: of log_variance, all others ignore it
        tracked_steps=0,  # last steps that control is differentiated through; 0: all of them
        noise=1.0,  # η: of a diffusion model, in units of its own; less keeps more memory
    )
