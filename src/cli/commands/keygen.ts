import { resolve } from "node:path";
import { createKeyFile } from "../../config/key-file.ts";
import { deriveSealKey, formatKeyText } from "../../format/envelope.ts";
import { printable } from "../../util/printable.ts";
import type { Command } from "../command.ts";

const KEY_BYTES = 32;

export const command: Command = {
  usage: "[--output <path>]",
  description: [
    "Makes a new random key and writes it to a file of mode 0600, or to standard output. Name the file in [defaults.encryption] key_file, and everything is encrypted before it leaves this host.",
    "The same key encrypts and decrypts. Keep a copy of it off this host and apart from the backups: without it they cannot be read.",
  ],
  options: [
    {
      name: "output",
      value: "path",
      description: "Write the key to this new file; an existing one is never overwritten",
    },
  ],
  examples: [
    { comment: "A key for the daemon", command: "bakelite keygen --output /etc/bakelite/key.txt" },
    { comment: "To standard output", command: "bakelite keygen" },
  ],
  async run({ options, flags, stdout, stderr }) {
    const rawKey = crypto.getRandomValues(new Uint8Array(KEY_BYTES));
    const keyText = formatKeyText(rawKey);
    const { fingerprint } = deriveSealKey(rawKey);
    const output = options.text("output");
    const path = output === undefined ? null : resolve(output);
    if (path !== null) await createKeyFile(path, keyText);
    if (flags.json)
      stdout.write(`${JSON.stringify({ fingerprint, output: path, key: path === null ? keyText : null }, null, 2)}\n`);
    else if (path === null) stdout.write(`${keyText}\n`);
    if (path !== null) stderr.write(`wrote a new key to ${printable(path)}\n`);
    stderr.write(`fingerprint: ${fingerprint}\n`);
    stderr.write(
      "note: keep a copy of the key off this host and apart from the backups; without it they cannot be read\n",
    );
    return 0;
  },
};
