// The list for the next trip to the shop: what is low, in the order of the shop's aisles.

/**
 * Builds the list.
 * @param {Array<{name: string, grams: number, wanted: number}>} foods
 */
export function shoppingList(foods) {
  const missing = foods.filter((food) => food.grams < food.wanted);
  return missing.sort((one, other) => aisle(one.name) - aisle(other.name));
}

const AISLES = ["vegetables", "bread", "milk", "jars", "how does the ledger recover after a crash"];

function aisle(name) {
  const at = AISLES.findIndex((word) => name.includes(word));
  return at < 0 ? AISLES.length : at;
}
