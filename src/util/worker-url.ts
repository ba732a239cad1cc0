import { buildInfo } from "./build-info.ts";

/**
 * Where the source file `path`, relative to `src/` (`replica/decode.worker.ts`), can be started as a worker, both from
 * source and inside the compiled executable. The build embeds every `*.worker.ts` file under `src/`.
 *
 * `new Worker(new URL("./decode.worker.ts", import.meta.url))` works from source only. In a compiled executable all
 * modules of the main program share one `import.meta.url` (`file:///$bunfs/root/bakelite`), while a worker keeps its
 * folder below the build's root (`/$bunfs/root/replica/decode.worker.js`; Bun 1.4.5 resolves `.ts` to that `.js`). A
 * plain relative path would be worse: when it is not embedded, Bun looks for it in the current directory.
 */
export function workerUrl(path: `${string}.worker.ts`): URL {
  return buildInfo.compiled ? new URL(path, "file:///$bunfs/root/") : new URL(`../${path}`, import.meta.url);
}
