export type LogLevel = "error" | "warn" | "info" | "debug";

/** Values that a log line may carry. Byte counts and durations are numbers whose key ends in the unit. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** Where a floor reports what it does. Implementations write to standard error only and never see a secret. */
export interface Logger {
  error(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  /** A logger that adds `fields` (such as the database's name) to every line. */
  child(fields: LogFields): Logger;
}

/** Says nothing; for tests and for callers that were given no logger. */
export const silentLogger: Logger = {
  error() {},
  warn() {},
  info() {},
  debug() {},
  child() {
    return silentLogger;
  },
};
