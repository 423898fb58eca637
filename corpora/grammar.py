"""Sentences of a small world, and a grammar that accepts exactly these.

One table of rules, in JSGF's notation, gives both the random sentences and the grammar for the
recogniser. Words are lower case. A letter to be spelled is upper case in the rules, so that speech
synthesisers say its name; "," and "." are for them too, and not part of a sentence's text.
"""

import dataclasses
import functools
import hashlib
import random
import re

from spirit_jax import small_world
from spirit_jax.small_world import ACTIONS

PARTS = {"train": 0.90, "valid": 0.03, "test": 0.07}


def _either(*choices: str) -> str:
    return " | ".join(choices)


def _questions() -> list[tuple[str, str, str]]:
    """All questions, each with a template of its answer and the words to fill in."""
    numbers = "zero one two three four five six seven eight nine ten eleven twelve".split()
    numbers += "thirteen fourteen fifteen sixteen seventeen eighteen".split()
    days = "monday tuesday wednesday thursday friday saturday sunday".split()
    months = "january february march april may june july august september october".split()
    months += ["november", "december"]
    colors = {"the sky": "blue", "the grass": "green", "the snow": "white", "the night": "black"}
    colors |= {"the sun": "yellow", "a rose": "red", "an orange": "orange", "a mouse": "gray"}
    colors |= {"a tree": "green", "milk": "white", "the sea": "blue", "a bear": "brown"}
    opposites = "hot cold, big small, day night, old young, happy sad, fast slow, open closed"
    opposites += ", light dark, high low, left right, black white, summer winter, good bad"
    opposites += ", rich poor, strong weak, loud quiet, early late, wet dry, long short"
    sounds = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack"}
    homes = {"fish": "in the water", "bird": "in a tree", "horse": "on a farm"}
    homes |= {"bear": "in the forest", "cow": "on a farm", "mouse": "in the wall"}
    pairs = []
    for thing, color in colors.items():
        pairs.append((f"what color is {thing}", f"{thing} is {{}}", color))
        pairs.append((f"is {thing} {color}", f"yes , {thing} is {{}}", color))
    for a, b in (pair.split() for pair in opposites.split(", ")):
        for word, opposite in ((a, b), (b, a)):
            question = f"what is the opposite of {word}"
            pairs.append((question, f"the opposite of {word} is {{}}", opposite))
    for animal, sound in sounds.items():
        pairs.append((f"what does a {animal} say", f"a {animal} says {{}}", sound))
    for animal, home in homes.items():
        pairs.append((f"where does a {animal} live", f"a {animal} lives {{}}", home))
    for names in (days, months):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            pairs.append((f"what comes after {name}", f"{{}} comes after {name}", following))
            pairs.append((f"what comes before {following}", f"{{}} comes before {following}", name))
    for a in range(10):
        for b in range(10):
            left, right = numbers[a], numbers[b]
            plus = f"{left} plus {right}"
            pairs.append((f"what is {plus}", f"{plus} is {{}}", numbers[a + b]))
            if a >= b:
                minus = f"{left} minus {right}"
                pairs.append((f"what is {minus}", f"{minus} is {{}}", numbers[a - b]))
    return pairs


def _stories() -> list[str]:
    """Stories with rules in them; who and what stay the same within a story."""
    stories = []
    for people, who in (("boys", "he"), ("girls", "she")):
        for animal in "cat dog bird horse mouse fish bear duck cow".split():
            stories += [
                f"<{people}> went to the <outside> . {who} saw a <size> {animal} . "
                f"the {animal} was <feeling>",
                f"<{people}> had a <size> {animal} . the {animal} was <feeling>",
                f"a <size> {animal} came to the <outside> . <{people}> gave it some <food>",
            ]
        for thing in "book key ring hat ball letter".split():
            stories += [
                f"<{people}> lost a {thing} . {who} looked in the <room> . "
                f"the {thing} was in the <room>",
                f"<{people}> found a <size> {thing} in the <outside> . {who} was <feeling>",
            ]
    return stories


SPELLED = "cat dog bird fish bear duck cow milk tea book key ring hat ball rain snow sun wind red "
SPELLED += "blue green black white house door lamp fan window king queen boy girl friend tree rose "
SPELLED += "sky sea river garden kitchen letter music water bread apple night day one two three "
SPELLED += "four five six seven eight nine ten horse mouse farm forest orange yellow brown quiet"
QUESTIONS = _questions()
ANSWERED = [f"{question} . {frame.format(value)}" for question, frame, value in QUESTIONS]
RULES = {
    "digit": "one | two | three | four | five | six | seven | eight | nine",
    "teen": "ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen"
    " | nineteen",
    "ten": "twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety",
    "small": "<digit> | <teen> | <ten> | <ten> <digit>",
    "big": "<small> | <digit> hundred | <digit> hundred and <small>"
    " | <small> thousand <digit> hundred",
    "any": "zero | <digit>",
    "counted": "cats | dogs | birds | horses | books | keys | apples | letters | trees | houses",
    "number": "the number is <big> | i see <big> <counted> | there are <small> <counted> in the"
    " <outside> | my number is <any> <any> <any> , <any> <any> <any> <any>"
    " | count from <small> to <small> | page <big>",
    "hour": "one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve",
    "minute": "five | ten | twenty | twenty five | a quarter",
    "clock": "<hour> o'clock | half past <hour> | <minute> past <hour> | <minute> to <hour>",
    "part": "in the morning | in the afternoon | in the evening",
    "event": "the train | the bus | the school | the music | dinner | the game | the party",
    "time": "it is <clock> | it is <clock> <part> | <event> starts at <clock>"
    " | <event> starts at <clock> <part> | wake me up at <clock> <part>",
    "weekday": "monday | tuesday | wednesday | thursday | friday | saturday | sunday",
    "month": "january | february | march | april | may | june | july | august | september | october"
    " | november | december",
    "nth": "first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth"
    " | eleventh | twelfth | twentieth | twenty first | twenty second | twenty third | thirtieth",
    "date": "today is <weekday> , the <nth> of <month> | the <occasion> is on the <nth> of <month>"
    " | the <occasion> is on <weekday> <part> | see you on <weekday> , <month> <nth>",
    "occasion": "party | meeting | game | birthday | wedding",
    "sky": "cold | warm | hot | sunny | cloudy | windy | wet | dry | foggy",
    "fall": "rain | snow | fog | wind",
    "region": "north | south | east | west",
    "when": "today | tonight | tomorrow | on <weekday>",
    "weather": "it will be <sky> and <sky> <when> | there will be <fall> in the <region> <when>"
    " | it is <sky> in the <region> , and <sky> in the <region>"
    " | the weather <when> is <sky> , with some <fall> | it is <small> degrees in the <region>",
    "switch": "turn on | turn off",
    "switched": "lights | lamp | heat | music | fan | television | radio",
    "moved": "open the | close the",
    "movable": "door | window | curtains",
    "turned": "turn up the | turn down the",
    "turnable": "heat | music | volume | lights",
    "fetched": "newspaper | juice | shoes | socks | book | keys",
    "room": "kitchen | bedroom | bathroom | living room | hall | garage | office",
    "please": "please | can you",
    "outside": "garden | village | forest | river | street | park | school | market | station",
    "size": "small | big | young | old | brown | white | black | little",
    "feeling": "happy | sad | tired | hungry | quiet | cold | very happy | very sad | not afraid",
    "food": "bread | milk | water | apples | fish",
    "boys": "the old king | my brother | the boy | the teacher | john",
    "girls": "the young queen | my sister | the girl | the doctor | mary",
    "spelling": _either(*(f"spell {w} . {' , '.join(w.upper())}" for w in SPELLED.split())),
    "question": _either(*ANSWERED),
    "story": _either(*_stories()),
}
OBJECTS = dict(
    zip(ACTIONS, "switched switched movable movable turnable turnable fetched".split(), strict=True)
)  # the rule of what each action is done to
REQUESTS = [
    f"{start}{verb} <{rule}>{end}"
    for verb, rule in OBJECTS.items()
    for start in ("", "<please> ")
    for end in ("", " in the <room>" if rule != "fetched" else " from the <room>")
]
RULES["request"] = _either(*REQUESTS)
KINDS = {"number": 4, "time": 3, "date": 3, "weather": 3, "request": 5}
KINDS |= {"spelling": 1, "question": 2, "story": 4}  # how often each is drawn


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence, or a few that belong together.

    Attributes:
      text: the words, lower case.
      kind: its rule, in `KINDS`.
      spoken: the same with punctuation and capitals, as input of a speech synthesiser.
      intent: of a request: action, object and, if the request names one, place.
      question, answer: the two halves of a question with its answer; "" for others.
    """

    text: str
    kind: str
    spoken: str
    intent: str = ""
    question: str = ""
    answer: str = ""


def part_of(text: str) -> str:
    """The part that a sentence always belongs to: train, valid or test."""
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    for part, size in PARTS.items():
        if share < size:
            return part
        share -= size
    return "test"


def intent_of(text: str) -> str:
    """The intent of a request, such as "activate lights kitchen"; "" for other texts."""
    return small_world.intent_of(text) if accepts(text) == "request" else ""


def draw(rng: random.Random) -> Sentence:
    """A random sentence."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    raw = f"<{kind}>"
    while match := re.search(r"<(\w+)>", raw):
        raw = raw[: match.start()] + rng.choice(_choices(match[1])) + raw[match.end() :]
    return from_rule(kind, raw)


def from_rule(kind: str, raw: str) -> Sentence:
    """The sentence of an expanded rule.

    Args:
      kind: the name of the rule, in `KINDS`.
      raw: an expansion of it, without any "<rule>".
    """
    text = _plain(raw)
    marks = raw.replace(" .", "?" if kind == "question" else ".").replace(" ,", ",")
    question, answer = map(_plain, raw.split(" . ")) if kind == "question" else ("", "")
    return Sentence(text, kind, f"{marks}.", intent_of(text), question, answer)


def sentences(part: str, count: int, seed: int = 0) -> list[Sentence]:
    """`count` distinct random sentences of a part."""
    rng = random.Random(f"{part} {seed}")
    drawn: dict[str, Sentence] = {}
    while len(drawn) < count:
        sentence = draw(rng)
        if part_of(sentence.text) == part:
            drawn.setdefault(sentence.text, sentence)
    return list(drawn.values())


def questions(part: str) -> list[Sentence]:
    """All questions of a part, with their answers."""
    answered = [from_rule("question", rule) for rule in ANSWERED]
    return [sentence for sentence in answered if part_of(sentence.text) == part]


def jsgf() -> str:
    """The grammar of all sentences, as pocketsphinx reads it."""
    lines = ["#JSGF V1.0;", "grammar world;", f"public <sentence> = {_kinds()};"]
    lines += [f"<{name}> = {_plain(rule)};" for name, rule in RULES.items()]
    return "\n".join(lines) + "\n"


def accepts(text: str) -> str:
    """The kind of sentence that the rules accept a text as; "" if none."""
    for kind in KINDS:
        if _pattern(kind).fullmatch(text):
            return kind
    return ""


def vocabulary() -> list[str]:
    """All words, sorted."""
    rules = " ".join(re.sub(r"<\w+>|\|", " ", rule) for rule in RULES.values())
    return sorted(set(_plain(rules).split()))


def _kinds() -> str:
    return _either(*(f"<{kind}>" for kind in KINDS))


@functools.cache
def _choices(rule: str) -> list[str]:
    return RULES[rule].split(" | ")


@functools.cache
def _pattern(rule: str) -> re.Pattern:
    text = _plain(RULES[rule]).replace(" | ", "|")
    return re.compile(re.sub(r"<(\w+)>", lambda match: f"(?:{_pattern(match[1]).pattern})", text))


def _plain(raw: str) -> str:
    return " ".join(raw.replace(" ,", "").replace(" .", "").lower().split())
