/** Answers as pictures, the most similar first, with the threshold as a line between them. */

import { indexes } from "./api.mjs";
import { button, h, text } from "./dom.mjs";
import { picture } from "./pictures.mjs";
import { cosine, count, percent, summary } from "./words.mjs";

const SIDE = 320;
const SMALL = 96;
const MORE_SHOWN = 5;

/**
 * @typedef {{title: string, similarity: number, id: string, has_picture: boolean, attributes: object, others: {id: string, has_picture: boolean, similarity: number}[]}} Answer
 */

/** The answers of a response, whether they are grouped by identity or not. @returns {Answer[]} */
export function answersOf(result) {
  if (result.identities) {
    return result.identities.map(({ identity, similarity, images }) => ({ ...images[0], title: identity, similarity, others: images.slice(1) }));
  }
  return result.answers.map((answer) => ({ ...answer, title: answer.label ?? answer.id, others: [] }));
}

/**
 * The answers' cards, made once: a moved threshold puts the same cards elsewhere.
 *
 * @param {string} index its name
 * @param {Answer[]} answers
 * @param {{search: (id: string) => void, details: (answer: Answer) => void}} actions
 * @returns {(threshold: {similarity: number, fpir: number|null}|null, words: object) => Node[]} `words` as of words.mjs
 */
export function answerList(index, answers, actions) {
  const cards = answers.map((each) => answerCard(index, each, actions));
  return (threshold, words) => {
    if (!threshold) return [h("ol", { class: "answers" }, cards)];
    const accepted = answers.filter((each) => each.similarity >= threshold.similarity).length;
    cards.forEach((card, place) => card.classList.toggle("above", place < accepted));
    const [above, below] = [cards.slice(0, accepted), cards.slice(accepted)];
    return [
      above.length > 0 && h("ol", { class: "answers", "aria-label": words.above }, above),
      thresholdLine(threshold, words),
      below.length > 0 && h("ol", { class: "answers below", "aria-label": words.below }, below),
    ].filter(Boolean);
  };
}

function thresholdLine({ similarity, fpir }, words) {
  const rate = fpir === null ? "" : `, false-positive rate ${percent(fpir)}`;
  return h("p", { class: "line" }, h("span", {}, `${words.above}, ${words.below}`), h("span", { class: "quiet" }, `${cosine(similarity)}${rate}`));
}

function answerCard(index, answer, actions) {
  const { title, similarity, id, attributes, others } = answer;
  const known = summary(attributes);
  const shape = picture(indexes.picture(index, answer, SIDE), `Search from ${title}, ${id}`, "button", { title: "Search from this", on: { click: () => actions.search(id) } });
  const small = others.slice(0, MORE_SHOWN).map((each) => picture(indexes.picture(index, each, SMALL), `Search from ${each.id}, similarity ${cosine(each.similarity)}`, "button", { on: { click: () => actions.search(each.id) } }));
  const hidden = others.length - small.length;
  return h(
    "li",
    { class: "answer" },
    shape,
    h(
      "div",
      { class: "caption" },
      h("div", { class: "row apart nowrap" }, text(title, { class: "who" }), button("", () => actions.details(answer), { kind: "bare square dots", iconName: "dots", "aria-label": `More on ${title}` })),
      h("div", { class: "similarity" }, h("span", {}, cosine(similarity)), h("span", { class: "scale", style: { "--part": Math.max(0, similarity) } })),
      known && h("bdi", { class: "what", title: known }, known),
      small.length > 0 && h("div", { class: "more" }, small, hidden > 0 && h("span", { class: "count" }, `+${count(hidden)}`)),
    ),
  );
}
