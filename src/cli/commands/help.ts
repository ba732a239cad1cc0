import type { Command } from "../command.ts";

export const command: Command = {
  usage: "[command]",
  options: [],
  positionals: ["command"],
  examples: [
    { comment: "All commands", command: "bakelite help" },
    { comment: "What restore does, its options and examples", command: "bakelite help restore" },
  ],
  async run(context) {
    context.stdout.write(await context.help(context.positionals[0]));
    return 0;
  },
};
