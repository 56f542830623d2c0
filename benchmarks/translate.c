/* The translation engine once more, as a C program: what the compiled kernels of vmmsim are measured against.
 *
 * The rules are docs/engine.md's. The structures are the same down to their entries (recency-ordered sets of keys and
 * values, radix tables in one pool), so that after any stream all counters, all structures and all tables are equal;
 * `bench.py` asserts that before it measures. Two things the kernels have are left out, because a C program could do
 * without them: nothing can be undone (a walk that faults ends the run) and nothing is logged.
 *
 * core.h, written by c_rival.py from the engine's own record, defines `struct core` and the numbers of the counters.
 */

#include <stdbool.h>
#include <stdint.h>

#include "core.h"

typedef int64_t word;

enum { GUEST, NESTED };                 /* dimensions */
enum { BY_WALK, BY_SEGMENT, IDENTITY }; /* what a dimension uses */
enum { L1_DATA, L1_FETCH, L2 };         /* groups of TLB parts, three sizes each */
enum { WALK_PART = 10, NESTED_PART = 14, CACHE_PART = 20 };
enum { WRITE = 1, FETCH = 2 };
enum { CAN_WRITE = 1, IS_DIRTY = 2, CAN_EXECUTE = 4, RIGHTS = 7, VALUE_SHIFT = 3 };
enum { PRESENT = 1, WRITABLE = 2, LEAF = 4, ACCESSED = 8, DIRTY = 16, EXECUTABLE = 32, GLOBAL = 64 };
enum { FRAME_SHIFT = 7, NODE_SHIFT = 38, CACHED_NODE_BITS = 25 };
enum { OWN_KIND = 0, GLOBAL_KIND = 3, NESTED_KIND = 6 }; /* bits of core->present */
enum { MISSED, LACKS_RIGHT, LACKS_DIRTY };

#define FRAME_MASK ((1LL << 31) - 1)
#define CACHED_NODE_MASK ((1LL << CACHED_NODE_BITS) - 1)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* ---- Sets in recency order: the first way is the most recently used, empty ways (0) come last. ---- */

static inline word find(const word *set, word ways, word key)
{
    for (word way = 0; way < ways; way++)
        if (set[way] == key)
            return way;
    return -1;
}

/* Sets with values: `ways` keys, then `ways` values. */

static inline void touch(word *set, word ways, word way)
{
    word key = set[way], carried = set[0], carried_value = set[ways];
    while (carried != key) {
        set++;
        word held = set[0], held_value = set[ways];
        set[0] = carried, set[ways] = carried_value;
        carried = held, carried_value = held_value;
    }
    set -= way;
    set[0] = carried, set[ways] = carried_value;
}

/* Update and move to the front, or push: each entry moves on until one fills the gap that the key left, or an empty
 * way. Returns whether an empty way was taken. */
static inline bool put(word *set, word ways, word key, word value)
{
    word carried = key, carried_value = value;
    for (word *last = set + ways - 1;; set++) {
        word held = set[0], held_value = set[ways];
        set[0] = carried, set[ways] = carried_value;
        if (held == key || held == 0 || set == last)
            return held == 0;
        carried = held, carried_value = held_value;
    }
}

static void drop(word *set, word ways, word way)
{
    for (word i = way; i < ways - 1; i++) {
        set[i] = set[i + 1];
        set[ways + i] = set[ways + i + 1];
    }
    set[ways - 1] = set[2 * ways - 1] = 0;
}

static inline word *set_of(const struct core *core, word *cells, word part, word number)
{
    return cells + core->part_start[part] + (number & core->part_mask[part]) * 2 * core->part_ways[part];
}

/* ---- TLBs ---- */

static inline word low_bits(word page, word size)
{
    return page & ((1LL << 9 * size) - 1);
}

static inline word key_of(word space, word nested, word size, word page)
{
    return space << 48 | nested << 47 | size << 45 | page >> 9 * size;
}

struct place {
    word *set; /* NULL if nothing was found */
    word ways, way, size, value;
    bool global;
};

static inline struct place look_up(const struct core *core, word *cells, word group, word page)
{
    word present = core->present[group];
    for (word size = 0; present & 077; size++, present = present >> 1 & 033) {
        word part = 3 * group + size, ways = core->part_ways[part];
        word *set = set_of(core, cells, part, page >> 9 * size);
        if (present & 1) {
            word way = find(set, ways, key_of(core->context, 0, size, page));
            if (way >= 0)
                return (struct place){set, ways, way, size, set[ways + way], false};
        }
        if (present & 8) {
            word way = find(set, ways, key_of(core->global_context, 0, size, page));
            if (way >= 0)
                return (struct place){set, ways, way, size, set[ways + way], true};
        }
    }
    return (struct place){0};
}

static inline bool fill(struct core *core, word *cells, word group, word size, bool global, word page, word value)
{
    word part = 3 * group + size;
    word space = global ? core->global_context : core->context;
    core->present[group] |= 1 << (size + (global ? GLOBAL_KIND : OWN_KIND));
    return put(set_of(core, cells, part, page >> 9 * size), core->part_ways[part], key_of(space, 0, size, page), value);
}

static inline void fill_both(struct core *core, word *cells, word l1, word size, bool global, word page, word frame,
                             word rights, bool to_l2)
{
    size = core->cut[l1][size];
    word value = (frame - low_bits(page, size)) << VALUE_SHIFT | rights;
    fill(core, cells, l1, size, global, page, value);
    if (to_l2 && core->cut[L2][size] == size)
        core->count[COLD_FILLS] += fill(core, cells, L2, size, global, page, value);
}

static void drop_found(struct core *core, word *cells, word group, word page)
{
    struct place found = look_up(core, cells, group, page);
    if (found.set)
        drop(found.set, found.ways, found.way);
}

/* ---- Caches: sets of keys alone, line + 1 each ---- */

/* 1 a hit, 0 a miss, -1 a miss that took an empty way; the line is first in its set afterwards. */
static inline int look_up_line(const struct core *core, word *cells, word level, word line)
{
    word part = CACHE_PART + level, ways = core->part_ways[part], key = line + 1;
    word *set = cells + core->part_start[part] + (line & core->part_mask[part]) * ways;
    if (set[0] == key)
        return 1;
    word carried = key;
    for (word *last = set + ways - 1;; set++) {
        word held = set[0];
        set[0] = carried;
        if (held == key || held == 0 || set == last)
            return held == key ? 1 : held == 0 ? -1 : 0;
        carried = held;
    }
}

static word reference_cycles(struct core *core, word *cells, word line)
{
    int answer = 0;
    for (word level = core->walker_cache; level < 4; level++)
        if (level != 1 && core->part_ways[CACHE_PART + level]) {
            answer = look_up_line(core, cells, level, line);
            if (answer == 1)
                return core->cache_cycles[level];
        }
    core->count[REFERENCES_FROM_MEMORY]++;
    core->count[COLD_LINES] += answer == -1;
    return core->memory_cycles;
}

static word data_cycles(struct core *core, word *cells, word line, bool is_fetch)
{
    if (look_up_line(core, cells, is_fetch, line) == 1)
        return core->cache_cycles[is_fetch];
    for (word level = 2; level < 4; level++)
        if (core->part_ways[CACHE_PART + level] && look_up_line(core, cells, level, line) == 1)
            return core->cache_cycles[level];
    return core->memory_cycles;
}

static inline void use_line(struct core *core, word *cells, word frame, word line, word kind)
{
    if (core->hierarchy)
        core->count[DATA_CYCLES] += data_cycles(core, cells, frame << 6 | line, (kind & FETCH) != 0);
}

/* ---- Segments and their filters ---- */

static inline bool filter_hits(const struct core *core, int dimension, word page)
{
    if (core->members_count[dimension] == 0)
        return false;
    word hashes = 0;
    for (int byte = 0; byte < 6; byte++)
        hashes ^= core->filter_hash[dimension][byte][page >> 8 * byte & 255];
    for (word bank = 0; bank < core->filter_banks[dimension]; bank++) {
        word bit = hashes >> 15 * bank & 0x7fff;
        if (!(core->filter_bits[dimension][bank][bit >> 5] >> (bit & 31) & 1))
            return false;
    }
    return true;
}

static void count_escape(struct core *core, int dimension, word page)
{
    core->count[ESCAPES]++;
    for (word i = 0; i < core->members_count[dimension]; i++)
        if (core->members[dimension][i] == page)
            return;
    core->count[FALSE_ESCAPES]++;
}

/* Compare; a compare that fails is counted here, one that succeeds where it is used. */
static inline bool covers(struct core *core, int dimension, word page)
{
    word base = core->segment_base[dimension], limit = core->segment_limit[dimension];
    if (core->kind[dimension] != BY_SEGMENT || base >= limit)
        return false;
    bool inside = page >= base && page < limit;
    if (likely(inside && !filter_hits(core, dimension, page)))
        return true;
    core->count[CHECKS_FAILED]++;
    if (inside)
        count_escape(core, dimension, page);
    return false;
}

static bool any_escape(const struct core *core, const word *pool, int dimension, word first, word pages)
{
    if (core->filter_banks[dimension] == 0 || core->members_count[dimension] == 0)
        return false;
    const word *map = pool + core->escape_map[dimension];
    word origin = core->segment_base[dimension] >> 9;
    for (word block = (first >> 9) - origin; block < ((first + pages) >> 9) - origin; block++)
        if (map[block >> 5] >> (block & 31) & 1)
            return true;
    return false;
}

static word largest_size(const struct core *core, const word *pool, int dimension, word page, word most)
{
    for (word size = most; size > 0; size--) {
        word pages = 1LL << 9 * size, first = page & -pages;
        if (first >= core->segment_base[dimension] && first + pages <= core->segment_limit[dimension] &&
            (core->segment_offset[dimension] & (pages - 1)) == 0 && !any_escape(core, pool, dimension, first, pages))
            return size;
    }
    return 0;
}

/* ---- Walks ---- */

struct walk {
    word checks, cycles, cached; /* of this walk: base-bound checks, latencies, hits of walk caches */
    word nested_hits;
};

struct mapping {
    word frame, size, rights;
    bool covered, global, fault;
};

static const struct mapping FAULT = {.fault = true};

static inline void reference(struct core *core, word *cells, struct walk *walk, word frame, word place)
{
    if (core->hierarchy)
        walk->cycles += reference_cycles(core, cells, frame << 6 | (place & 511) >> 3);
}

/* The lowest level of walk cache that knows the page; 0 if none does. */
static inline word look_up_table(const struct core *core, word *cells, word first, word space, word page, word top,
                                 word *value)
{
    for (word level = 2; level <= top; level++) {
        word ways = core->part_ways[first + level];
        if (ways == 0)
            continue;
        word prefix = page >> 9 * (level - 1);
        word *set = set_of(core, cells, first + level, prefix);
        word way = find(set, ways, space << 48 | prefix);
        if (way >= 0) {
            *value = set[ways + way];
            touch(set, ways, way);
            return level;
        }
    }
    return 0;
}

static inline void remember_table(const struct core *core, word *cells, word first, word space, word page, word level,
                                  word frame, word node)
{
    word ways = core->part_ways[first + level];
    if (ways) {
        word prefix = page >> 9 * (level - 1);
        put(set_of(core, cells, first + level, prefix), ways, space << 48 | prefix, frame << CACHED_NODE_BITS | node);
    }
}

static struct mapping nested_walk(struct core *core, word *cells, word *pool, struct walk *walk, word gfn, bool is_write)
{
    word cached, node, frame, top = core->levels[NESTED];
    word level = look_up_table(core, cells, NESTED_PART, core->eptp, gfn, top, &cached);
    if (level) {
        core->count[NESTED_WALK_CACHE_HITS]++;
        walk->cached++;
        node = cached & CACHED_NODE_MASK, frame = cached >> CACHED_NODE_BITS, level--;
    } else {
        node = core->root[NESTED], frame = core->root_frame[NESTED], level = top;
    }
    word *at, entry;
    for (;; level--) {
        word index = gfn >> 9 * (level - 1) & 511;
        at = pool + (node << 9 | index);
        entry = *at;
        core->count[NESTED_REFERENCES]++;
        reference(core, cells, walk, frame, index);
        if (unlikely(!(entry & PRESENT)))
            return FAULT;
        if (level == 1 || entry & LEAF)
            break;
        if (core->nested_dirty && !(entry & ACCESSED))
            *at = entry | ACCESSED;
        node = entry >> NODE_SHIFT, frame = entry >> FRAME_SHIFT & FRAME_MASK;
        remember_table(core, cells, NESTED_PART, core->eptp, gfn, level, frame, node);
    }
    if (unlikely(is_write && !(entry & WRITABLE)))
        return FAULT;
    word rights = CAN_EXECUTE | IS_DIRTY | (entry & WRITABLE ? CAN_WRITE : 0);
    if (core->nested_dirty) {
        word marked = entry | ACCESSED | (is_write ? DIRTY : 0);
        if (marked != entry)
            *at = marked;
        if (!(marked & DIRTY))
            rights &= ~IS_DIRTY;
    }
    word size = level - 1;
    return (struct mapping){.frame = (entry >> FRAME_SHIFT & FRAME_MASK) + low_bits(gfn, size), .size = size, .rights = rights};
}

static struct mapping nested_by_table(struct core *core, word *cells, word *pool, struct walk *walk, word gfn,
                                      bool is_write, bool is_table)
{
    word group = core->nested_group;
    bool cached = is_table || core->ntlb_data;
    if (cached) {
        word present = core->present[group] >> NESTED_KIND;
        for (word size = 0; present; size++, present >>= 1) {
            if (!(present & 1))
                continue;
            word part = 3 * group + size, ways = core->part_ways[part];
            word *set = set_of(core, cells, part, gfn >> 9 * size);
            word way = find(set, ways, key_of(core->eptp, 1, size, gfn));
            if (way < 0)
                continue;
            word value = set[ways + way];
            if (is_write && (value & (CAN_WRITE | IS_DIRTY)) != (CAN_WRITE | IS_DIRTY))
                break;
            touch(set, ways, way);
            core->count[NESTED_TLB_HITS]++;
            walk->nested_hits++;
            return (struct mapping){
                .frame = (value >> VALUE_SHIFT) + low_bits(gfn, size), .size = size, .rights = value & RIGHTS};
        }
    }
    struct mapping found = nested_walk(core, cells, pool, walk, gfn, is_write);
    if (cached && !found.fault) {
        word size = core->cut[group][found.size];
        if (size >= 0) {
            word part = 3 * group + size;
            core->present[group] |= 1 << (NESTED_KIND + size);
            put(set_of(core, cells, part, gfn >> 9 * size), core->part_ways[part], key_of(core->eptp, 1, size, gfn),
                (found.frame - low_bits(gfn, size)) << VALUE_SHIFT | found.rights);
        }
    }
    return found;
}

static inline struct mapping translate_nested(struct core *core, word *cells, word *pool, struct walk *walk, word gfn,
                                              bool is_write, bool is_table)
{
    if (core->kind[NESTED] == IDENTITY)
        return (struct mapping){.frame = gfn, .size = 2, .rights = RIGHTS};
    if (covers(core, NESTED, gfn)) {
        walk->checks++;
        return (struct mapping){
            .frame = gfn + core->segment_offset[NESTED], .size = 2, .rights = RIGHTS, .covered = true};
    }
    return nested_by_table(core, cells, pool, walk, gfn, is_write, is_table);
}

static struct mapping guest_walk(struct core *core, word *cells, word *pool, struct walk *walk, word page, bool is_write,
                                 bool is_fetch)
{
    word cached, node, frame, gfn = 0, top = core->levels[GUEST];
    word level = look_up_table(core, cells, WALK_PART, core->context, page, top, &cached);
    if (level) {
        core->count[WALK_CACHE_HITS]++;
        walk->cached++;
        node = cached & CACHED_NODE_MASK, frame = cached >> CACHED_NODE_BITS, level--;
    } else {
        node = core->root[GUEST], frame = -1, gfn = core->root_frame[GUEST], level = top;
    }
    word *at, entry;
    for (;; level--) {
        if (frame < 0) {
            struct mapping table = translate_nested(core, cells, pool, walk, gfn, core->nested_dirty, true);
            if (unlikely(table.fault))
                return FAULT;
            frame = table.frame;
            if (level < top)
                remember_table(core, cells, WALK_PART, core->context, page, level + 1, frame, node);
        }
        word index = page >> 9 * (level - 1) & 511;
        at = pool + (node << 9 | index);
        entry = *at;
        core->count[GUEST_REFERENCES]++;
        reference(core, cells, walk, frame, index);
        if (unlikely(!(entry & PRESENT)))
            return FAULT;
        if (level == 1 || entry & LEAF)
            break;
        if (!(entry & ACCESSED))
            *at = entry | ACCESSED;
        node = entry >> NODE_SHIFT, gfn = entry >> FRAME_SHIFT & FRAME_MASK, frame = -1;
    }
    if (unlikely((is_write && !(entry & WRITABLE)) || (is_fetch && !(entry & EXECUTABLE))))
        return FAULT;
    word marked = entry | ACCESSED | (is_write ? DIRTY : 0);
    if (marked != entry)
        *at = marked;
    word size = level - 1;
    word rights = (entry & WRITABLE ? CAN_WRITE : 0) | (marked & DIRTY ? IS_DIRTY : 0) | (entry & EXECUTABLE ? CAN_EXECUTE : 0);
    return (struct mapping){.frame = (entry >> FRAME_SHIFT & FRAME_MASK) + low_bits(page, size),
                            .size = size,
                            .rights = rights,
                            .global = (entry & GLOBAL) != 0};
}

/* ---- One access ---- */

static inline word wanted_rights(word kind)
{
    return (kind & WRITE ? CAN_WRITE | IS_DIRTY : 0) | (kind & FETCH ? CAN_EXECUTE : 0);
}

/* What no TLB level could translate. covered: -1 if the guest segment was not compared yet. */
static bool miss(struct core *core, word *cells, word *pool, word page, word line, word kind, int covered, int why)
{
    struct walk walk = {0};
    bool is_write = (kind & WRITE) != 0;
    if (covered < 0)
        covered = covers(core, GUEST, page);
    struct mapping guest;
    if (covered) {
        guest = (struct mapping){.frame = page + core->segment_offset[GUEST], .size = 2, .rights = RIGHTS, .covered = true};
        walk.checks++;
    } else {
        guest = guest_walk(core, cells, pool, &walk, page, is_write, (kind & FETCH) != 0);
        if (unlikely(guest.fault))
            return false;
    }
    struct mapping nested = translate_nested(core, cells, pool, &walk, guest.frame, is_write, false);
    if (unlikely(nested.fault))
        return false;

    bool flat = nested.covered || core->kind[NESTED] == IDENTITY;
    if (covered && flat) {
        core->count[SEGMENT_0D]++;
        core->count[BASE_BOUND_CHECKS]++;
    } else {
        core->count[WALKS]++;
        core->count[covered ? WALK_NESTED : flat ? WALK_GUEST : WALK_BOTH]++;
        core->count[BASE_BOUND_CHECKS] += walk.checks;
        if (core->hierarchy)
            core->count[WALK_CYCLES] += walk.cycles + walk.checks * core->check_cycles +
                                        walk.cached * core->walk_cache_cycles +
                                        walk.nested_hits * core->nested_tlb_cycles;
    }

    word l1 = kind & FETCH ? L1_FETCH : L1_DATA;
    if (why != MISSED) {
        core->count[REWALKS]++;
        core->count[DIRTY_WALKS] += why == LACKS_DIRTY;
        drop_found(core, cells, l1, page);
        drop_found(core, cells, L2, page);
    }

    word size = 0;
    if (!(covered && flat) || core->dd_largest) {
        word guest_size = guest.size, nested_size = nested.size;
        if (covered && nested_size)
            guest_size = largest_size(core, pool, GUEST, page, nested_size);
        if (nested.covered && guest_size)
            nested_size = largest_size(core, pool, NESTED, guest.frame, guest_size);
        size = guest_size < nested_size ? guest_size : nested_size;
    }
    fill_both(core, cells, l1, size, guest.global, page, nested.frame, guest.rights & (nested.rights | CAN_EXECUTE),
              !covered || core->segment_fills_l2);
    use_line(core, cells, nested.frame, line, kind);
    return true;
}

/* What the first way of the L1 TLB's set did not translate. */
static __attribute__((noinline)) bool ladder(struct core *core, word *cells, word *pool, word page, word line, word kind)
{
    word l1 = kind & FETCH ? L1_FETCH : L1_DATA, want = wanted_rights(kind);
    struct place found = look_up(core, cells, l1, page);
    if (found.set) {
        if ((found.value & want) == want) {
            touch(found.set, found.ways, found.way);
            use_line(core, cells, (found.value >> VALUE_SHIFT) + low_bits(page, found.size), line, kind);
            return true;
        }
        bool dirty = (found.value & want) == (want & ~IS_DIRTY);
        return miss(core, cells, pool, page, line, kind, -1, dirty ? LACKS_DIRTY : LACKS_RIGHT);
    }

    core->count[l1 == L1_FETCH ? INSTRUCTION_L1_MISSES : DATA_L1_MISSES]++;
    int covered = -1, why = MISSED;
    if (core->kind[GUEST] == BY_SEGMENT && !core->segment_after_l2)
        covered = covers(core, GUEST, page);
    if (covered != 1) {
        found = look_up(core, cells, L2, page);
        if (found.set) {
            if ((found.value & want) == want) {
                touch(found.set, found.ways, found.way);
                word frame = (found.value >> VALUE_SHIFT) + low_bits(page, found.size);
                fill_both(core, cells, l1, found.size, found.global, page, frame, found.value & RIGHTS, false);
                core->count[L2_HITS]++;
                use_line(core, cells, frame, line, kind);
                return true;
            }
            why = (found.value & want) == (want & ~IS_DIRTY) ? LACKS_DIRTY : LACKS_RIGHT;
        }
    }
    core->count[L2_MISSES] += why == MISSED;
    return miss(core, cells, pool, page, line, kind, covered, why);
}

/* Translate a chunk of packed accesses; return how many of them were: fewer than n if one faulted. */
int64_t translate(struct core *core, int64_t *cells, int64_t *pool, const int64_t *chunk, int64_t n)
{
    word accesses = 0, i;
    word others = core->count[L2_HITS] + core->count[SEGMENT_0D] + core->count[WALKS];
    word context = core->context, hierarchy = core->hierarchy;
    word start[2], mask[2], ways[2];
    for (int l1 = L1_DATA; l1 <= L1_FETCH; l1++)
        start[l1] = core->part_start[3 * l1], mask[l1] = core->part_mask[3 * l1], ways[l1] = core->part_ways[3 * l1];

    for (i = 0; i < n; i++) {
        word packed = chunk[i], page = packed >> 18, line = packed >> 12 & 63, kind = packed & 3;
        word l1 = kind >> 1, want = wanted_rights(kind);
        /* Mostly the page used last in its set, by a 4K entry of this context. */
        word *set = cells + start[l1] + (page & mask[l1]) * 2 * ways[l1];
        word value = set[ways[l1]];
        if (likely(set[0] == key_of(context, 0, 0, page) && (value & want) == want)) {
            if (hierarchy)
                use_line(core, cells, value >> VALUE_SHIFT, line, kind);
        } else if (unlikely(!ladder(core, cells, pool, page, line, kind))) {
            break;
        }
        accesses += 1 + (packed >> 2 & 1023);
    }
    core->count[ACCESSES] += accesses;
    core->count[L1_HITS] += accesses - (core->count[L2_HITS] + core->count[SEGMENT_0D] + core->count[WALKS] - others);
    return i;
}
