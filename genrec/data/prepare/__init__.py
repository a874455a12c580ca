"""From a raw log to a prepared dataset: parse, sort, number, split, attach queries."""
