"""Every key of a configuration, its default, what it means and, after a dash, why it is that.

Reasons with a figure are bridge gaps in nats of single runs, whose seeds differ by about .01:
two moons after 3000 gradient steps where "moons" stands beside it, which ends at .110 with the
defaults and the energy feature (all of benchmarks/results/ablation.md, by
`python -m benchmarks.ablation`), else Gaussian to ring after 3000 to 8000.

A configuration file starts from `get_config()` and sets values:

    from experiments.configs import base

    def get_config():
        config = base.get_config()
        config.target.name = "ring"
        return config

The sections of methods are in `experiments/defaults_of_methods.py`. What each key may hold is
declared in `experiments/fields.py`. A key that is not listed is refused, except under
`options`.
"""

from ml_collections import ConfigDict

from experiments import defaults_of_methods
from experiments.defaults_of_methods import section


def get_config() -> ConfigDict:
    """Returns the default configuration, unlocked: validation finds unknown keys."""
    return section(
        seed=0,  # of the training key; evaluation derives its own keys from it
        # ipf, or between sampled ends
        # dsb | sde | dsbm: ipf with mean_matching, sde_likelihood, bridge_matching for "auto"
        # sf2m | cfm | eot: coupled minibatches and a regression, see matching
        # lightsb: a potential in closed form; enot: a process against a discriminator
        # sampler: from a Gaussian to an energy, against its reference's reversal, see sampler
        # diffusion: from a Gaussian to samples, by denoising score matching
        # asbs | adjoint_sampling | bms: from samples to an energy, by adjoints of paths' ends
        # fine_tuning: the forward process of a finished run, steered by a reward
        method="ipf",
        source=_endpoint(name="two_moons", access="samples"),  # p_0, the end at time 0
        target=_endpoint(name="ring", access="energy"),  # p_1, the end at time grid.t_max
        pair=section(
            # none | mixtures | gaussian_plan: both ends made as one by d2ejax.pairs, for the
            # reference and grid.t_max given here, with their exact bridge in any dimension;
            # source.name and target.name are then "pair"
            name="none",
            options=section(),  # keyword options of that constructor
        ),
        snapshots=section(
            # none | branching | gapminder | regulatory: a process of d2ejax.snapshots for sf2m,
            # cfm and eot, observed at more times than its two ends, from 0 to grid.t_max;
            # source.name and target.name are then "snapshots", and grid.num_steps is spread
            # evenly over the intervals between these times
            name="none",
            options=section(),  # keyword options of that constructor
            # which of them training does not see, counted from 0, the source: it is what the
            # bridge is judged by; -1: it sees all of them
            left_out=-1,
        ),
        reference=_reference(),
        grid=section(
            num_steps=20,  # K: kernels per path, so network calls per path
            t_max=0.2,  # T: length of the time interval, in the reference's unit of time
            # uniform | end_refined | cosine - refined where the drift is stiff: a quarter of
            # the gap that Gaussian kernels can reach on a uniform grid
            spacing="end_refined",
            # of end_refined: t_k = T (1 - (1 - k/K)^power) - matched kernels reach .070, with
            # 1.5 .093 and with 3 .069
            power=2.0,
        ),
        # learn each kernel's variance; False keeps the reference's - with which no chain can
        # come to rest on modes narrower than its last step
        learn_variance=True,
        variance=section(
            # bounded | bridge: how the network's output becomes a variance - bridge has the
            # form of the exact kernels
            family="bridge",
            bound=6.0,  # largest magnitude of the learned log-variance, in nats
        ),
        network=_network(),
        graph=_graph(),
        # paths scored in one gradient step, all starts together - 6000 steps of 128 end at
        # .086, 3000 of 256 at .098
        batch_size=128,
        ipf=defaults_of_methods.ipf(),
        light=defaults_of_methods.light(),
        matching=defaults_of_methods.matching(),
        sampler=defaults_of_methods.sampler(),
        enot=defaults_of_methods.enot(),
        adjoint=defaults_of_methods.adjoint(),
        diffusion=section(num_steps=6000),  # gradient steps
        fine_tuning=defaults_of_methods.fine_tuning(),
        optimiser=_optimiser(),
        exploration=_exploration(),
        parallel=section(
            backend="pmap",  # pmap | shard_map: how a step is spread over the local devices
            # devices that the CPU is cut into; XLA_FLAGS=--xla_force_host_platform_device_count
            # comes before it - two share a small step better than one device's threads do
            cpu_devices=2,
            # into how many parts the batch, the buffers and the keys are cut, a multiple of the
            # number of devices; 0: one for each device - with a number, what a run computes
            # does not depend on how many devices share it, but for rounding
            shards=0,
        ),
        loop=section(
            steps_per_dispatch=100,  # gradient steps per device call; no effect on results
            checkpoint_every=1000,  # gradient steps between two checkpoints
            keep=2,  # newest checkpoints to keep
            # beside them the best, for --checkpoint=best: that of the lowest bridge gap, known
            # at the ends of phases, then saved as well; where none is, of the lowest mean loss
            # since the checkpoint before, among those of the latest phase, for losses of two
            # phases are different quantities
            keep_best=False,
            tensorboard=False,  # event files for TensorBoard as well, in the folder events
            max_consecutive_skipped=100,  # non-finite steps in a row after which the run stops
        ),
        evaluate=section(
            num_samples=2000,  # samples in each set compared by W2²
            num_paths=10000,  # paths behind each Monte-Carlo estimate
            # W2² of the ends of the probability flow as well: ten seconds more, and for what is
            # trained on the times of the grid alone, an approximation
            flow=False,
            smc=False,  # log Z by sequential Monte Carlo as well, from a Gaussian to an energy
            # the "Sinkhorn distance" of published samplers as well, in forty seconds
            sinkhorn=False,
            # .npz file of benchmarks.reference_chains, draws and log Z by which a target that
            # has no samples of its own is judged; training never sees them
            reference="",
            plots=True,  # draw them; False for runs of which only the numbers matter
        ),
    )


def _endpoint(name: str, access: str) -> ConfigDict:
    return section(
        name=name,  # a constructor in d2ejax.endpoints.registry, "pair" or "snapshots"
        access=access,  # samples | energy: all that training may see of this end
        options=section(),  # keyword options of that constructor
    )


def _reference() -> ConfigDict:
    return section(
        # brownian | ornstein_uhlenbeck | variance_exploding | variance_preserving
        name="brownian",
        sigma=2.0**0.5,  # diffusion of brownian and ornstein_uhlenbeck, per sqrt(time)
        rate=1.0,  # mean reversion of ornstein_uhlenbeck, per time
        sigma_min=0.01,  # smallest noise level of variance_exploding
        sigma_max=3.0,  # largest noise level of variance_exploding
        beta_min=0.1,  # smallest noise rate of variance_preserving, per time
        beta_max=20.0,  # largest noise rate of variance_preserving, per time
        reversed=False,  # whether the noise of the last two falls with time, instead of rising
        # exact | euler: what the processes' steps are built on; exact, so that an untrained
        # process is the reference (the two are one for brownian)
        discretisation="exact",
    )


def _network() -> ConfigDict:
    return section(
        width=64,  # of every hidden layer
        depth=4,  # hidden layers - .077; three of them .086, three of width 96 .087
        num_frequencies=8,  # cosines of each of the roots of time passed and time left
        layer_norm=True,  # normalise each hidden layer - .113 without, at three layers
        # drift that a network output of one stands for, in units of the reference's own
        # displacement per time, √variance(0, T) / T
        drift_scale=1.0,
        # drift | endpoint: what the network's output stands for, the drift or the displacement
        # of the end that the path runs to
        prediction="drift",
        # feed the end's energy gradient to the drift, if it has one - in the plane the network
        # learns faster without (two moons after 3000 steps: .093 against .110); in many
        # dimensions it cannot do without (see mixtures.py)
        energy_feature=False,
        score_clip=100.0,  # largest norm of that gradient
        # add a(t) x + b(t) to the drift, which normalised layers can hardly say in many
        # dimensions - between Gaussians in 50 of them the gap is .004 with it, 2.6 without
        affine=False,
        # an E(n)-equivariant network, for a target that is a system of particles; it has no
        # layer_norm and no dtype
        equivariant=False,
        # float32 | bfloat16: of the hidden layers but for the first; parameters and outputs
        # stay float32 - bfloat16 is for accelerators
        dtype="float32",
        # steps of a path scored at once, a divisor of grid.num_steps; 0: all of them, but on a
        # CPU one at a time from 256 paths a device on. Fewer need less memory, and one more
        # evaluation of the network for each gradient - 4096 paths: 142 ms a step with 1, 190
        # with all
        steps_at_once=0,
    )


def _graph() -> ConfigDict:
    return section(
        # none | forward | current: which drift is a network whose first layer is a graph of
        # what depends on what (d2ejax.graph_networks), in sf2m, cfm and eot: that of the
        # forward process, or the velocity of the flow
        of="none",
        width=16,  # of the hidden layers, of which each coordinate of the drift has its own
        depth=2,  # hidden layers
        # cosines of each of the roots of time; 0: one drift, and one graph, for all times
        num_frequencies=0,
        # of the norms of the first layer's weights in the loss, nats per unit
        sparsity=0.1,
    )


def _optimiser() -> ConfigDict:
    return section(
        # adamw | muon: for the weight matrices; biases always have AdamW - 3000 steps of 256
        # paths, three layers: .098 with muon, .117 with adamw
        name="muon",
        learning_rate=1e-2,  # at its peak - moons .116 with half of it, .112 with twice
        backward_ratio=1.0,  # learning rate of the backward process, in units of the forward's
        # constant | cosine, over all gradient steps of one process - moons .116 if constant
        schedule="cosine",
        warmup_steps=0,  # gradient steps of linear warm-up
        b2=0.999,  # decay of the second moment, per gradient step
        weight_decay=0.0,  # decoupled
        clip_norm=1.0,  # largest global norm of a gradient
        # of the averaged parameters, per gradient step - moons .113 without, .184 with 0.999
        ema_decay=0.99,
    )


def _exploration() -> ConfigDict:
    return section(
        # share of batches from the buffer, at the start - modes that the process has not found
        # are seen from the first step on: on-policy, moons loses some and ends at .96; with the
        # energy feature no share from 0 to 1 makes a difference
        off_policy_ratio=0.5,
        off_policy_ratio_end=0.5,  # the same at the end of training
        reuse_path=True,  # keep the backward path as one of the paths_per_start
        buffer_size=4096,  # points of the energy's end, per device
        add_ends=True,  # the ends of trained paths join them
        priority_power=0.0,  # points are drawn with probability ∝ density^power
        # none | ula | averaged_ula | mala | hmc - moons .114 with none, .109 and .110 with
        # averaged_ula and hmc, but 1.5 with none and no energy feature, which loses modes
        refresh_method="mala",
        refresh_every=50,  # gradient steps between two refreshes
        refresh_steps=10,  # Langevin (or HMC) steps of a refresh
        refresh_step_size=0.002,  # of those steps
        restart_fraction=0.05,  # of refreshed points, started anew from noise
        restart_std=1.0,  # of that noise, centred at the origin
        inverse_temperature_start=1.0,  # factor on the energy at the start of training
        # of each process's gradient steps, until ratio and factor reach their end values
        anneal_fraction=0.5,
    )
