import type { Clock } from "./clock.ts";
import type { LogFields, Logger, LogLevel } from "./logger.ts";
import { printable } from "./printable.ts";
import { mayColour, type TextOutput } from "./text-output.ts";

export interface TextLoggerOptions extends LogStyle {
  readonly output: TextOutput;
  readonly clock: Clock;
  /** Asked for `NO_COLOR`. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Looked at for every line, so that getters may change it while the logger is in use. */
export interface LogStyle {
  /** Less important lines are dropped: `info` shows error, warn and info. */
  readonly level: LogLevel;
  readonly format: "text" | "json";
}

const IMPORTANCE = { error: 0, warn: 1, info: 2, debug: 3 } as const;

const COLOURS = { error: 31, warn: 33, info: 32, debug: 2 } as const;

/**
 * Writes one line for each message. Text: `2026-05-25T12:00:00.000Z INFO  full backup stored database=app pages=1024`.
 * JSON: an object of `time`, `level`, `message` and the fields; a field with one of those three names is dropped.
 * Undefined fields are left out.
 */
export function createTextLogger(options: TextLoggerOptions): Logger {
  const renderers = { json: renderJson, text: renderText(mayColour(options.output, options.env)) } as const;
  const withFields = (ownFields: LogFields): Logger => {
    const log = (level: LogLevel) => (message: string, fields?: LogFields) => {
      if (IMPORTANCE[level] > IMPORTANCE[options.level]) return;
      const time = new Date(options.clock.nowMs()).toISOString();
      const render = renderers[options.format];
      options.output.write(`${render({ time, level, message, fields: { ...ownFields, ...fields } })}\n`);
    };
    return {
      error: log("error"),
      warn: log("warn"),
      info: log("info"),
      debug: log("debug"),
      child: (fields) => withFields({ ...ownFields, ...fields }),
    };
  };
  return withFields({});
}

interface LogLine {
  readonly time: string;
  readonly level: LogLevel;
  readonly message: string;
  readonly fields: LogFields;
}

function renderJson({ fields, ...line }: LogLine): string {
  // Twice: the first spread fixes the order, the second the values.
  // JSON itself leaves some control characters as they are; `\u009b` means the same inside its strings.
  return printable(JSON.stringify({ ...line, ...fields, ...line }));
}

function renderText(colour: boolean): (line: LogLine) => string {
  return ({ time, level, message, fields }) => {
    const name = level.toUpperCase().padEnd(5);
    const shown = colour ? `\u001b[${COLOURS[level]}m${name}\u001b[0m` : name;
    return [time, shown, printable(message), ...Object.entries(fields).flatMap(renderField)].join(" ");
  };
}

function renderField([key, value]: readonly [string, LogFields[string]]): readonly string[] {
  if (value === undefined) return [];
  const isPlain = typeof value !== "string" || /^[^\s"'=\p{Cc}]+$/u.test(value);
  return [`${key}=${isPlain ? String(value) : printable(JSON.stringify(value))}`];
}
