"""What a report explains to its reader."""

from __future__ import annotations

SCORES = (
    "Each row is one method on one game: the mean return of its evaluation episodes, averaged over "
    "training seeds. The score that counts is that of the checkpoint at step 100,000; a run without "
    "it shows its last evaluated step instead and is compared with nothing. Human-normalised: 0 is a "
    "random player, 1 a person. Click a heading to sort."
)
AVERAGES = (
    "Human-normalised scores averaged over games. Mean and median are over game means; IQM, the mean "
    "of the middle half of all runs, is the steadiest of the four; the optimality gap says how far "
    "runs stay below a person (lower is better). Brackets are 95 % intervals from a stratified "
    "bootstrap over seeds. Methods of which only means are published have neither interval nor IQM "
    "nor gap."
)
LEARNING_CURVES = (
    "Thick lines with dots: mean return of the evaluation episodes of each checkpoint, over seeds, "
    "with its 95 % interval from two seeds on. Thin lines: returns of the training episodes of each "
    "run. The black diamond is STORM's published mean at step 100,000, its whiskers the lowest and "
    "highest seed."
)
EFFICIENCY = (
    "How much play, and how much time, a score takes. Each point is the IQM over all runs of a "
    "method, at a checkpoint that every one of them was evaluated at; methods that played different "
    "games are not comparable here. Hours depend on the hardware in the table and on what else it "
    "ran."
)
IMAGINATION = (
    "What the world model believes will happen. Top row: what did happen. Middle row: the model's "
    "prediction, which after the marked context frames sees nothing but the actions. Bottom row: the "
    "error. One run per method and game, at its newest checkpoint."
)
LIMITS = "What is missing or unequal among these runs, and so limits what can be concluded from them."
LITERATURE = (
    "Averages as papers and secondary sources print them, and where every published score on this "
    "page comes from. Looked for and not found: {missing}."
)
PARTIAL = (
    "A partial grid: {methods} has scores on these games only: {games}. The averages, the published "
    "ones too, are over these games alone, so they are not Atari-100k results."
)
NONE_OF_OURS = "None of the runs here is averaged: that takes a score at step 100,000 on every game."
NOT_COMPARABLE = (
    "None of them has been evaluated at step 100,000 of an Atari game yet, so none may be compared "
    "with published scores."
)
COMPARABLE = "Runs with an Atari-100k score (an evaluation at step 100,000): {count}."
AGGREGATES_CAPTION = "The same averages: the line is the value, the bar its 95 % interval."
PROFILES_CAPTION = (
    "Performance profile: the share of runs above each score. Where a curve lies above another, its "
    "method is the better one."
)
IMPROVEMENT_CAPTION = (
    "How likely a run of one method beats a run of another on a game drawn at random. At 0.5 neither "
    "is better; a bar that does not touch the dotted line shows a difference."
)
