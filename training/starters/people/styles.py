"""The authored motions: what people do before a camera, in keyframes that were written by hand, each in several styles.

The left side does what one side does; tracks are mirrored at random. Names of the motions are labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.starters.people.authored import HANGING, STANCE, Key, Style, Vector

WIDE: Vector = (0.2, 0.0, 0.0)
ON_HIPS: Vector = (0.14, -0.72, 0.12)
CROSSED: Vector = (-0.25, -0.42, 0.38)
ON_THIGHS: Vector = (0.0, -0.72, 0.45)
BESIDE_HEAD: Vector = (0.0, 0.35, 0.12)


def _waves(one: Vector, other: Vector, seconds: tuple[float, float], *, both: bool = False) -> Style:
    return Style([Key(hands=hand, right_hand=None if both else HANGING) for hand in (one, other)], seconds)


def _claps(together: Vector, apart: Vector, seconds: tuple[float, float]) -> Style:
    return Style([Key(hands=together, time=0.8), Key(hands=apart)], seconds)


def _squats(below: Vector, above: Vector) -> Style:
    down = Key(hips=(0, 0.58, -0.2), pelvis=(0, 45, 0), chest=(0, -8, 0), gaze=(0, -25, 0), hands=below, feet=WIDE)
    return Style([Key(hands=above, feet=WIDE), down, down._replace(time=0.8)], (1.8, 4.0))


def _lunges(hands: Vector) -> Style:
    upright = Key(hands=hands)
    left, right = (0.11, 0.0, 0.42), (0.11, 0.08, -0.42)
    step, down = Key(hips=(0, 0.97, 0.02), hands=hands, time=0.5), Key(hips=(0, 0.63, 0.03), hands=hands, time=1.3)
    raised = (0.11, 0.14, 0.2)
    return Style(
        [
            *(upright, step._replace(feet=raised, right_foot=STANCE), down._replace(feet=left, right_foot=right)),
            *(step._replace(feet=raised, right_foot=STANCE), upright, step._replace(feet=STANCE, right_foot=raised)),
            *(down._replace(feet=right, right_foot=left), step._replace(feet=STANCE, right_foot=raised)),
        ],
        (3.0, 6.0),
    )


SEATED = Key(hips=(0, 0.55, -0.42), pelvis=(0, 4, 0), chest=(0, 4, 0), hands=ON_THIGHS, feet=(0.13, 0, 0.02))


def _sits(seconds: tuple[float, float], *hands: Vector | tuple[Vector, Vector], at: Key = SEATED) -> Style:
    """hands: one place after another, of both or of left and right."""
    pairs = [(one[0], one[1]) if isinstance(one[0], tuple) else (one, one) for one in hands]
    turned = [(15 * (-1) ** number, 5.0, 0.0) for number in range(len(pairs))]
    return Style([at._replace(hands=left, right_hand=right, gaze=gaze) for (left, right), gaze in zip(pairs, turned, strict=True)], seconds)


LEANING_BACK = SEATED._replace(pelvis=(0, -18, 0), feet=(0.12, 0, 0.4))
BENT = Key(hips=(0, 0.95, -0.16), pelvis=(0, 65, 0), chest=(0, 25, 0), hands=(0.0, -0.95, 0.2))
CROUCHED = Key(hips=(0, 0.62, -0.12), pelvis=(0, 50, 0), chest=(0, 20, 0), hands=(-0.1, -0.9, 0.35), right_hand=(0.05, -0.6, 0.45))


def _idles(hands: Vector, seconds: tuple[float, float] = (3.0, 8.0)) -> Style:
    shifted = Key(hips=(0.05, 0.99, 0), pelvis=(0, 0, 3), gaze=(30, 5, 0), hands=hands)
    return Style([Key(hands=hands), shifted, Key(hips=(-0.04, 0.99, 0), gaze=(-25, 0, 0), hands=hands)], seconds)


def _jumps(height: float, seconds: tuple[float, float], *, forward: float = 0.0) -> Style:
    crouch = Key(hips=(0, 0.74, -0.12), pelvis=(0, 35, 0), hands=(0.1, -0.75, -0.45))
    flight = Key(hips=(0, 1 + height, 0), pelvis=(0, 8, 0), hands=(0.1, 0.7, 0.5), feet=(0.11, height, 0.02), gone=forward / 2, time=0.45)
    land = Key(hips=(0, 0.8, -0.1), pelvis=(0, 30, 0), hands=(0.2, -0.4, 0.6), gone=forward, time=0.7)
    return Style([Key(), crouch, Key(hands=(0.1, 0.2, 0.7), time=0.4), flight, land], seconds, strides=forward)


GAIT = ((2, 0.0), (1, 0.0), (0, 0.0), (-1, 0.0), (-2, 0.06), (-1.7, 0.16), (0.3, 0.12), (1.7, 0.04))
"""A foot's eight phases of walking, half of them on the ground: steps forward of the hips, and its height."""


def _walks(step: float, seconds: tuple[float, float], hands: Vector | None = None, lean: float = 3.0) -> Style:
    """step: quarter of the way in which a foot stays on the ground, in legs. hands: None to swing them."""
    keys = []
    for phase in range(8):
        (left, left_up), (right, right_up) = GAIT[phase], GAIT[(phase + 4) % 8]
        swing = 0.8 * step * left
        keys.append(
            Key(
                hips=(0, 0.985, 0),
                pelvis=(-12 * step * left, lean, 0),
                chest=(20 * step * left, 0, 0),
                hands=hands or (0.15, -0.93, 0.1 - swing),
                right_hand=hands or (0.15, -0.93, 0.1 + swing),
                feet=(0.09, left_up, step * left),
                right_foot=(0.09, right_up, step * right),
                gone=phase * step,
            )
        )
    return Style(keys, seconds, strides=8 * step)


PALMS, REACH = 0.03, 0.12
"""Height of a wrist on the ground; half a step of crawling."""


def _crawls(at: Key, hand: Vector, foot: Vector, seconds: tuple[float, float]) -> Style:
    """Left hand and right foot go together: a step back on the ground, then forward through the air."""

    def moved(limb: Vector, phase: int) -> Vector:
        forward, raised = [(REACH, 0.0), (0.0, 0.0), (-REACH, 0.0), (0.0, 0.07)][phase % 4]
        return (limb[0], limb[1] + raised, limb[2] + forward)

    keys = [
        at._replace(
            hands=moved(hand, phase),
            right_hand=moved(hand, phase + 2),
            feet=moved(foot, phase + 2),
            right_foot=moved(foot, phase),
            gone=phase * REACH,
        )
        for phase in range(4)
    ]
    return Style(keys, seconds, standing=False, planted=True, strides=4 * REACH)


ON_KNEES = Key(hips=(0, 0.53, 0), pelvis=(0, 80, 0), chest=(0, 4, 0), gaze=(0, -35, 0))
ON_FEET = Key(hips=(0, 0.74, 0.02), pelvis=(0, 106, 0), chest=(0, 4, 0), gaze=(0, -30, 0))

STYLES: Mapping[str, Sequence[Style]] = {
    "wave": (
        _waves((0.15, 0.45, 0.35), (0.6, 0.4, 0.3), (0.45, 1.1)),
        _waves((0.35, 0.1, 0.5), (0.0, 0.1, 0.55), (0.4, 1.0)),
        _waves((-0.05, 0.95, 0.1), (0.65, 0.7, 0.1), (0.7, 1.6)),
        _waves((0.0, 0.95, 0.1), (0.6, 0.72, 0.1), (0.7, 1.6), both=True),
        _waves((0.2, 0.93, 0.1), (0.95, 0.05, 0.1), (0.7, 1.6), both=True),
        Style([Key(hands=hands) for hands in ((0.25, -0.92, 0.1), (0.98, 0.0, 0.08), (0.2, 0.95, 0.1), (0.98, 0.0, 0.08))], (0.7, 1.8)),
    ),
    "clap": (
        _claps((-0.33, -0.2, 0.6), (0.05, -0.15, 0.6), (0.3, 0.8)),
        _claps((-0.33, -0.3, 0.7), (0.5, -0.1, 0.55), (0.5, 1.2)),
        _claps((-0.33, 0.82, 0.2), (0.25, 0.78, 0.15), (0.45, 1.1)),
    ),
    "squat": (_squats((0.0, -0.1, 0.95), HANGING), _squats((-0.25, -0.15, 0.45), (-0.25, -0.15, 0.45)), _squats(BESIDE_HEAD, BESIDE_HEAD)),
    "push-up": tuple(
        Style(
            [
                Key(hips=(0, 0.41, 0.86), pelvis=(0, 70, 0), gaze=(0, -30, 0), hands=(out, PALMS, 1.34), feet=(0.08, 0.02, 0)),
                Key(hips=(0, 0.19, 0.905), pelvis=(0, 83, 0), gaze=(0, -30, 0), hands=(out, PALMS, 1.34), feet=(0.08, 0.02, 0)),
            ],
            (0.9, 2.6),
            standing=False,
            planted=True,
        )
        for out in (0.24, 0.36)
    ),
    "jumping jack": (
        Style(
            [
                Key(feet=(0.06, 0, 0)),
                Key(hips=(0, 1.04, 0), hands=(0.98, 0.0, 0.08), feet=(0.24, 0.05, 0), time=0.8),
                Key(hips=(0, 0.95, 0), hands=(0.15, 0.94, 0.1), feet=(0.42, 0, 0)),
                Key(hips=(0, 1.04, 0), hands=(0.98, 0.0, 0.08), feet=(0.24, 0.05, 0), time=0.8),
            ],
            (0.8, 1.6),
        ),
    ),
    "lunge": (_lunges(HANGING), _lunges(ON_HIPS), _lunges((-0.25, -0.15, 0.45))),
    "sit": (
        _sits((4.0, 9.0), ON_THIGHS, (0.05, -0.75, 0.4), (-0.1, -0.7, 0.42)),
        _sits((0.8, 2.0), (-0.1, -0.45, 0.62), (-0.05, -0.48, 0.6)),
        _sits((1.5, 4.0), ((0.3, -0.3, 0.45), ON_THIGHS), ((0.1, -0.15, 0.55), (0.2, -0.4, 0.5)), (ON_THIGHS, ON_THIGHS)),
        _sits((4.0, 9.0), ((-0.2, 0.0, 0.3), CROSSED), (CROSSED, CROSSED)),
        _sits((4.0, 9.0), ON_THIGHS, CROSSED, BESIDE_HEAD, at=LEANING_BACK),
        Style([Key(time=0.3), SEATED, SEATED._replace(gaze=(20, 0, 0)), SEATED], (4.0, 7.0)),
    ),
    "bend": (
        Style([Key(time=0.7), BENT, BENT._replace(hands=(0.1, -0.93, 0.1), time=0.7)], (1.8, 4.0)),
        Style([Key(time=0.7), CROUCHED, CROUCHED._replace(time=0.7)], (1.8, 4.0)),
        Style([Key(time=0.5), BENT._replace(chest=(0, 5, 0), pelvis=(0, 50, 0), hands=(0.05, -0.95, -0.1))], (1.5, 4.0)),
        Style([BENT, BENT._replace(hands=(0.3, -0.85, 0.35), right_hand=(-0.1, -0.9, 0.3), pelvis=(15, 60, 0))], (1.0, 3.0)),
    ),
    "stand": (_idles(HANGING), _idles(CROSSED), _idles(ON_HIPS), _idles((-0.12, -0.85, 0.22)), _idles(HANGING, (8.0, 20.0))),
    "walk": (
        _walks(0.18, (0.9, 1.3)),
        _walks(0.1, (0.9, 1.6)),
        _walks(0.21, (0.8, 1.1), lean=7.0),
        _walks(0.16, (0.9, 1.4), (-0.1, -0.85, 0.22)),
        _walks(0.15, (0.9, 1.4), (-0.05, -0.4, 0.6)),
    ),
    "jump": (
        _jumps(0.3, (1.0, 2.0)),
        _jumps(0.25, (1.0, 2.2), forward=1.0),
        Style([Key(hips=(0, 0.94, -0.02)), Key(hips=(0, 1.12, 0), feet=(0.11, 0.12, 0))], (0.35, 0.7)),
    ),
    "crawl": (
        _crawls(ON_KNEES, (0.2, PALMS, 0.52), (0.1, 0.0, -0.44), (0.9, 2.0)),
        _crawls(ON_FEET, (0.2, PALMS, 0.5), (0.12, 0.03, -0.3), (0.8, 1.8)),
    ),
}
