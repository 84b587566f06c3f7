"""The planner's knobs, each with where its default comes from.

"Measured" means the size sweeps of section 7.2 of the design notes on a simulated 16 x 8 L20.
"""

from __future__ import annotations

import msgspec


class PlannerKnobs(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about the planner that a person may want to turn.

    Attributes:
        decode_headroom: decode devices per device of decode demand; queueing at 80 % use.
        encode_headroom: the same for encode, whose pools are smaller and so queue earlier.
        pool_limit: use of a decode pool above which it is not rounded down to whole nodes.
        fragmentation: share of a wide block that one decode on it keeps from wide requests.
            0.5 explains the measured knees with and without a pool (1.03 and .91 of 1.5/s).
        pool_share: a video model gets a decode pool when decodes would withdraw more than this
            share of the work's devices from the widest class.
        whole_blocks: share of the objective that is given up for whole blocks. Filling a node of
            5 decoders and 1 encoder up with 2 more decoders costs 1.6 % of the objective and
            took 1 to 5 % off the mean latency (measured on HunyuanVideo and CogVideoX).
        min_gain: least relative gain in sustainable requests/s that pays for a switch.
        cheap_gain: the same when almost nothing has to be loaded.
        doubt: a gain also has to exceed this over the square root of the requests in the window,
            half their sampling error: what few requests suggest is noise.
        cheap_load_share: load time over (devices x horizon) up to which a switch is cheap.
        comfort: a placement that sustains this many times the demand is left alone.
        horizon_s: how long a switch has to pay back what its loads cost.
        cooldown_s: least seconds between two switches that nothing forced.
        imbalance: fastest over slowest stage that counts as imbalance (the paper's 1.5).
        mix_shift: total variation of the work by class that counts as a new mix.
        min_requests: requests in a window below which it is blended with what was known before.
        target_load: load that a demand of unknown rate is scaled to.
        boot_grace_s: how long a configured device may stay away before it is planned without.
        reserve_bytes: memory of each device kept free beside weights and activations.
    """

    decode_headroom: float = 1.25
    encode_headroom: float = 1.4
    pool_limit: float = 0.95
    fragmentation: float = 0.5
    pool_share: float = 0.10
    whole_blocks: float = 0.02
    min_gain: float = 0.10
    cheap_gain: float = 0.03
    doubt: float = 0.5
    cheap_load_share: float = 0.001
    comfort: float = 2.0
    horizon_s: float = 300.0
    cooldown_s: float = 60.0
    imbalance: float = 1.5
    mix_shift: float = 0.20
    min_requests: int = 24
    target_load: float = 0.8
    boot_grace_s: float = 120.0
    reserve_bytes: int = 0
