import { STORAGE_FORMAT_VERSION } from "../../format/header.ts";
import { buildInfo } from "../../util/build-info.ts";
import type { Command } from "../command.ts";

export const command: Command = {
  usage: "[--json]",
  options: [],
  examples: [
    { comment: "Everything a bug report should say", command: "bakelite version" },
    { comment: "For a script", command: "bakelite version --json" },
  ],
  async run({ flags, stdout }) {
    const sqliteVersion = process.versions["sqlite"] ?? "unknown";
    if (flags.json) {
      const document = {
        version: buildInfo.version,
        date: buildInfo.date,
        commit: buildInfo.commit,
        storage_format: { read: [STORAGE_FORMAT_VERSION], write: STORAGE_FORMAT_VERSION },
        target: buildInfo.targetTriple,
        bun_version: Bun.version,
        sqlite_version: sqliteVersion,
      };
      stdout.write(`${JSON.stringify(document, null, 2)}\n`);
      return 0;
    }
    const built = [buildInfo.date, buildInfo.commit].filter((part) => part !== null).join(", ");
    stdout.write(
      [
        `bakelite        ${buildInfo.version} (${built === "" ? "run from source" : built})`,
        `storage format  reads ${STORAGE_FORMAT_VERSION}, writes ${STORAGE_FORMAT_VERSION}`,
        `target          ${buildInfo.targetTriple}`,
        `bun             ${Bun.version}`,
        `sqlite          ${sqliteVersion}`,
        "",
      ].join("\n"),
    );
    return 0;
  },
};
