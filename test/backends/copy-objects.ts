import { type Backend, bytesSource } from "../../src/storage/backend.ts";

/** Puts every object of one backend into another, in memory one by one, so many at a time. Gives their number. */
export async function copyObjects(from: Backend, to: Backend, width = 8): Promise<number> {
  const keys = (await Array.fromAsync(from.list(""))).map((object) => object.key);
  const left = keys.values();
  const worker = async () => {
    for (const key of left) {
      const stream = await from.get(key);
      if (stream === null) throw new Error(`${key} is listed and not there`);
      await to.put(key, bytesSource(Buffer.concat(await Array.fromAsync(stream))));
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
  return keys.length;
}
