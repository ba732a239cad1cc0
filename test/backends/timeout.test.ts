import { expect, test } from "bun:test";
import type { Backend, ByteSource } from "../../src/storage/backend.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { withTimeout } from "../../src/storage/timeout.ts";
import { collect, text, textOf } from "./conformance.ts";

// The conformance suite runs in rate-limit.test.ts, over both wrappers.

/** Whose calls hang, like those of a network mount without its server, until it comes back. */
class DeadMount extends MemoryBackend {
  override readonly location = `/dead/${crypto.randomUUID()}`;
  readonly #back = Promise.withResolvers<void>();
  isDead = true;
  callCount = 0;

  comeBack(): void {
    this.isDead = false;
    this.#back.resolve();
  }

  async #hang(): Promise<void> {
    this.callCount++;
    if (this.isDead) await this.#back.promise;
  }

  override async put(...call: Parameters<Backend["put"]>): Promise<"stored" | "exists"> {
    await this.#hang();
    return await super.put(...call);
  }

  override async stat(...call: Parameters<Backend["stat"]>): ReturnType<Backend["stat"]> {
    await this.#hang();
    return await super.stat(...call);
  }

  override async *list(...call: Parameters<Backend["list"]>): ReturnType<MemoryBackend["list"]> {
    await this.#hang();
    yield* super.list(...call);
  }
}

const GIVEN_UP = { code: "storage-unreachable", message: expect.stringContaining("did not answer for 50ms") };

test("a call that the file system does not answer is given up, and the next ones fail at once until it is answered", async () => {
  for (const call of [
    (backend: Backend) => backend.stat("app/a"),
    (backend: Backend) => backend.put("app/a", text("late")),
    (backend: Backend) => collect(backend.list("app/")),
  ]) {
    const mount = new DeadMount();
    const backend = withTimeout(mount, 50);
    await expect(call(backend)).rejects.toMatchObject({ ...GIVEN_UP, subject: mount.location });
    const other = withTimeout(mount, 60_000);
    await expect(other.stat("app/a")).rejects.toMatchObject({
      code: "storage-unreachable",
      message: expect.stringContaining("still stuck"),
    });
    expect(mount.callCount).toBe(1);
    mount.comeBack();
    await Bun.sleep(0);
    // A put that comes back to life stores nothing any more: its caller was told that it failed.
    expect(await other.stat("app/a")).toBeNull();
    expect(await other.put("app/a", text("now"))).toBe("stored");
    expect(await textOf(other, "app/a")).toBe("now");
  }
});

test("an abort ends a call that hangs", async () => {
  const mount = new DeadMount();
  const abort = new AbortController();
  const hanging = withTimeout(mount, 60_000).stat("app/a", { signal: abort.signal });
  abort.abort();
  await expect(hanging).rejects.toMatchObject({ code: "interrupted" });
});

test("a source and a reader that take their time are not the backend's silence", async () => {
  const backend = withTimeout(new MemoryBackend(), 100);
  const slow: ByteSource = {
    sizeBytes: 2,
    replayable: false,
    async *open() {
      for (const byte of [1, 2]) {
        await Bun.sleep(150);
        yield Uint8Array.of(byte);
      }
    },
  };
  expect(await backend.put("app/a", slow)).toBe("stored");
  await backend.put("app/b", bytesSource(new Uint8Array(3)));
  const seen: string[] = [];
  for await (const { key } of backend.list("app/")) {
    await Bun.sleep(150);
    seen.push(key);
  }
  expect(seen).toEqual(["app/a", "app/b"]);
});
