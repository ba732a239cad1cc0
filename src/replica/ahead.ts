/** Work that runs ahead of the reader of its results. */
export interface AheadOptions<Item> {
  /** Items are begun while the weights of those begun and not finished with add up to no more than this; one always is. */
  readonly budget: number;
  readonly weight: (item: Item) => number;
}

/**
 * `work` of each item, in the order of the items, with later ones begun while the reader is busy with earlier ones. An item
 * counts against the budget until the reader asks for the next result. What `items` or `work` throws is thrown in its turn; when the
 * reader leaves early nothing new is begun, and what was begun ends unseen.
 */
export async function* mapAhead<Item, Result>(
  items: AsyncIterable<Item> | Iterable<Item>,
  work: (item: Item) => Promise<Result>,
  { budget, weight }: AheadOptions<Item>,
): AsyncGenerator<Result, void> {
  const begun: { readonly result: Promise<Result>; readonly weight: number }[] = [];
  let used = 0;
  let ended = false;
  let failure: { readonly error: unknown } | null = null;
  let wakeReader = () => {};
  let wakeProducer = () => {};

  const produce = async () => {
    try {
      for await (const item of items) {
        const itemWeight = weight(item);
        while (used > 0 && used + itemWeight > budget && !ended)
          await new Promise<void>((resolve) => (wakeProducer = resolve));
        if (ended) return;
        const result = work(item);
        result.catch(() => {}); // Thrown to the reader when its turn comes, or to nobody when the reader has left.
        used += itemWeight;
        begun.push({ result, weight: itemWeight });
        wakeReader();
      }
    } catch (error) {
      failure = { error };
    }
    ended = true;
    wakeReader();
  };

  const producing = produce();
  try {
    for (;;) {
      const next = begun.shift();
      if (next !== undefined) {
        yield await next.result;
        used -= next.weight;
        wakeProducer();
      } else if (ended) {
        await producing;
        if (failure !== null) throw (failure as { readonly error: unknown }).error;
        return;
      } else {
        await new Promise<void>((resolve) => (wakeReader = resolve));
      }
    }
  } finally {
    ended = true;
    wakeProducer();
  }
}
