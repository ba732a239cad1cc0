/** Text that means itself in a manual page. Source: groff_man(7), groff_char(7). */
export function escapeRoff(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll("`", "\\(ga")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti")
    .replaceAll("…", "...")
    .replace(/^\./gm, "\\&.");
}

/** One paragraph of Markdown: code and bold text in bold, links without where they lead. */
export function inlineRoff(markdown: string): string {
  const text = markdown
    .replace(/\[((?:[^[\]]|`[^`]*`)*)\]\([^)]*\)/g, "$1")
    .replace(/\s+/g, " ")
    .trim();
  return text
    .split(/(``.*?``|`[^`]*`|\*\*.*?\*\*)/)
    .map((piece) => {
      if (piece.startsWith("**")) return `\\fB${inlineRoff(piece.slice(2, -2)).replaceAll("\\fR", "\\fB")}\\fR`;
      const code = /^(`+)(.*)\1$/s.exec(piece)?.[2];
      return code === undefined ? escapeRoff(piece) : `\\fB${escapeRoff(code)}\\fR`;
    })
    .join("");
}

/** Lines as they are, indented. */
export function preformatted(text: string): string {
  return `.PP\n.RS 4\n.nf\n${escapeRoff(text)}\n.fi\n.RE`;
}

/**
 * What our own pages are written in: headings of two depths, paragraphs, lists of one depth, tables, fenced code. A table's
 * row becomes an entry with its first cell as the tag, the columns between as its head, and the last as its text.
 */
export function markdownToRoff(markdown: string): string {
  const out: string[] = [];
  for (const block of blocks(markdown)) {
    const [first = ""] = block;
    if (first.startsWith("```")) out.push(preformatted(block.slice(1, -1).join("\n")));
    else if (first.startsWith("## "))
      out.push(
        `.SH "${inlineRoff(first.slice(3)).toUpperCase().replaceAll("\\FB", "\\fB").replaceAll("\\FR", "\\fR")}"`,
      );
    else if (first.startsWith("#")) out.push(`.SS "${inlineRoff(first.replace(/^#+ /, ""))}"`);
    else if (first.startsWith("|")) out.push(...tableEntries(block));
    else if (/^(?:\* |\d+\. )/.test(first))
      for (const item of listItems(block)) out.push(`.IP \\(bu 3\n${inlineRoff(item)}`);
    else out.push(`.PP\n${inlineRoff(block.join(" "))}`);
  }
  return out.join("\n");
}

/** Lines that belong together: separated by empty lines, but a fence and a heading stand alone. */
function blocks(markdown: string): readonly (readonly string[])[] {
  const found: string[][] = [];
  let open: string[] = [];
  let inFence = false;
  const close = () => {
    if (open.length > 0) found.push(open);
    open = [];
  };
  for (const line of markdown.split("\n")) {
    const isFence = line.startsWith("```");
    if (isFence && !inFence) close();
    if (inFence || isFence) {
      open.push(line);
      if (isFence && inFence) close();
      if (isFence) inFence = !inFence;
    } else if (line.trim() === "") close();
    else if (line.startsWith("#")) {
      close();
      found.push([line]);
    } else open.push(line);
  }
  close();
  return found;
}

function tableEntries(lines: readonly string[]): readonly string[] {
  const rows = lines.map((line) =>
    line
      .replace(/^\| ?| ?\|$/g, "")
      .split(/ \| /)
      .map((cell) => cell.trim()),
  );
  const [heads = [], , ...body] = rows;
  return body.map(([tag = "", ...cells]) => {
    const text = cells.at(-1) ?? "";
    const between = cells.slice(0, -1).map((cell, i) => (i === 0 ? cell : `${heads[i + 1] ?? ""} ${cell}`));
    const head = between.length === 0 ? "" : `(${inlineRoff(between.join("; "))}) `;
    return `.TP\n${inlineRoff(tag)}\n${head}${inlineRoff(text)}`;
  });
}

function listItems(lines: readonly string[]): readonly string[] {
  const items: string[] = [];
  for (const line of lines) {
    const begun = /^(?:\* |\d+\. )(.*)$/.exec(line)?.[1];
    if (begun === undefined) items.push(`${items.pop() ?? ""} ${line.trim()}`);
    else items.push(begun);
  }
  return items;
}
