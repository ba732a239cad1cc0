/**
 * `bun application-process.ts <commands> <answers>`, two FIFOs: obeys one line of JSON after the other and answers each
 * with one. See application.ts.
 */
import { Database } from "bun:sqlite";
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import type { ApplicationAnswer, ApplicationCommand } from "./application.ts";

const connections = new Map<number, Database>();

function obey(command: ApplicationCommand): ApplicationAnswer {
  try {
    switch (command.do) {
      case "open":
        connections.set(command.connection, new Database(command.path, { readwrite: true, create: true }));
        return { rows: [] };
      case "close":
        connections.get(command.connection)?.close(true);
        connections.delete(command.connection);
        return { rows: [] };
      case "sql":
        return { rows: runSql(command.connection, command.statements) };
    }
  } catch (error) {
    const code = (error as { readonly code?: unknown }).code;
    return { error: String(error), code: typeof code === "string" ? code : "" };
  }
}

/** Each statement in turn; the rows of the last. */
function runSql(connection: number, statements: readonly string[]): readonly Record<string, unknown>[] {
  const database = connections.get(connection);
  if (database === undefined) throw new Error(`connection ${connection} is not open`);
  let rows: readonly Record<string, unknown>[] = [];
  for (const sql of statements) {
    const statement = database.prepare<Record<string, unknown>, []>(sql);
    try {
      rows = statement.all();
    } finally {
      statement.finalize();
    }
  }
  return rows;
}

function main(commandsPath: string, answersPath: string): void {
  const commands = openSync(commandsPath, "r");
  const answers = openSync(answersPath, "w");
  const bytes = new Uint8Array(64 * 1024);
  let text = "";
  for (let got = readSync(commands, bytes); got > 0; got = readSync(commands, bytes)) {
    text += new TextDecoder().decode(bytes.subarray(0, got));
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
      writeSync(answers, `${JSON.stringify(obey(JSON.parse(text.slice(0, end)) as ApplicationCommand))}\n`);
      text = text.slice(end + 1);
    }
  }
  for (const database of connections.values()) database.close();
  closeSync(answers);
}

main(process.argv[2] ?? "", process.argv[3] ?? "");
