import { printable } from "../util/printable.ts";

/** HTML that is safe to send. Only `html` and `trusted` make it, so what is no `Html` is text from somewhere else. */
export class Html {
  readonly #markup: string;

  constructor(markup: string) {
    this.#markup = markup;
  }

  toString(): string {
    return this.#markup;
  }
}

export type Content = Html | string | number | readonly Content[];

/** A template whose values are escaped, unless they are `Html` already: for text and for attribute values in double quotes. */
export function html(strings: TemplateStringsArray, ...values: readonly Content[]): Html {
  return new Html(strings.reduce((done, piece, i) => `${done}${markupOf(values[i - 1] ?? "")}${piece}`));
}

/** Only for markup that is written in this program. */
export function trusted(markup: string): Html {
  return new Html(markup);
}

function markupOf(content: Content): string {
  if (content instanceof Html) return content.toString();
  if (typeof content === "string" || typeof content === "number") return escapeHtml(String(content));
  return content.map(markupOf).join("");
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Control characters and those that turn the direction of writing are shown as escapes: a name must not look like another. */
export function escapeHtml(text: string): string {
  return printable(text.toWellFormed()).replace(/[&<>"']/g, (character) => ENTITIES[character] ?? character);
}
