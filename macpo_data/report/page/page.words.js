// What the page's words mean, for whoever has not read the paper: on hover, on focus, and as a list.
const WORDS = {
  perplexity: "How odd a model finds a text: 1 is no surprise at all, 10 is as if each token were drawn from ten. Lower is more familiar.",
  gold: "The score of the judge that comes with the data, from 0 (bad) to 1 (good).",
  reward: "The score of a reward model: the higher the better, without a fixed scale.",
  margin: "How much likelier the model finds the chosen answer than the rejected one. Above 0 it prefers the chosen one.",
  "win rate": "The share of comparisons that an answer wins. 0.5 is level.",
  "95 % interval": "Where the mean would most likely lie with other prompts of this kind.",
  "held-out": "Prompts that no model was trained on.",
  "negative twin": "A copy of an agent that was trained to answer badly: it writes the rejected answers.",
  ceiling: "The same student trained on good answers: the best that it could learn here.",
  floor: "The best teacher of round 0: what the student could simply imitate.",
  "gap recovered": "How much of the distance from floor to ceiling the student covered.",
  probe: "Human pairs that nothing learns from: they tell early whether a round strays.",
  candidates: "All answers that were up for selection.",
  chosen: "The answer of a pair that the learner is trained towards.",
  rejected: "The answer of a pair that the learner is trained away from.",
  learner: "The agent that is trained on a dataset.",
  round: "One turn of writing answers, choosing pairs and training. Round 0 is the start.",
  "DPO term": "The part of the loss that pulls chosen and rejected apart.",
  "SFT term": "The part of the loss that imitates the chosen answer.",
  "gradient norm": "How strongly a step changes the model; a jump is a sign of trouble.",
};

// Reasons for which a filter took an answer out.
const REASONS = {
  same_as_rejected: "equals the rejected answer", perplexity_too_high: "more perplexing than the bound",
  no_score: "no perplexity could be computed", duplicate_answer: "written before for this prompt",
  outside_pool: "not in the best share of all", only_answer: "the only answer of its prompt",
  judged_equal: "no better and no worse by the judge", truncated: "cut by the token limit",
  repetition: "repeats itself", too_short: "too short", too_long: "too long", empty: "empty",
  prompt_too_long: "the prompt does not fit the model", failed: "an endpoint gave no answer",
  prompt_in_test: "its prompt is in the test part", in_test_set: "its prompt is in a test set",
  overlaps_test_set: "its prompt is much like one of a test set", near_duplicate: "its prompt is much like an earlier one",
  rejected_empty: "the rejected answer is empty", rejected_failed: "no rejected answer: an endpoint failed",
  rejected_prompt_too_long: "no rejected answer: the prompt is too long",
};
const inWords = (reason) => REASONS[reason] ?? String(reason).replaceAll("_", " ");

const PLAIN = ["round", "learner", "chosen", "rejected"]; // too common to be marked wherever they stand

/** A text whose known words explain themselves; each the first time it stands there. */
function explained(text) {
  const names = Object.keys(WORDS).filter((name) => !PLAIN.includes(name)).sort((a, b) => b.length - a.length);
  const parts = String(text).split(new RegExp(`\\b(${names.join("|")})(?!\\w)`, "i"));
  const seen = new Set();
  return parts.filter((part) => part !== "").map((part) => {
    const meaning = WORDS[part.toLowerCase()] ?? WORDS[part];
    if (!meaning || seen.has(meaning)) return part;
    seen.add(meaning);
    const word = document.createElement("abbr");
    word.title = meaning;
    word.append(part);
    return word;
  });
}

/** All of them, as a list. */
function glossary() {
  const rows = Object.entries(WORDS).sort((a, b) => a[0].localeCompare(b[0])).flatMap(([word, meaning]) => {
    const [name, text] = [document.createElement("dt"), document.createElement("dd")];
    name.append(word);
    text.append(meaning);
    return [name, text];
  });
  document.getElementById("glossary").replaceChildren(...rows);
}
