// The cut of the k largest magnitudes from a band in which the threshold is expected: what `Tracker.mark` does in NumPy,
// in one pass and one call for a step of training that is compiled. `native.py` builds it and says what it takes.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t BLOCK = 64;

template <typename Key>
int64_t find_cut(const Key *const *parts, const int64_t *sizes, int64_t n_parts, int64_t k, double low_end,
                 double high_end, int64_t room, int64_t *positions, Key *values, Key *ordered, double *threshold) {
    const Key low = static_cast<Key>(low_end), high = static_cast<Key>(high_end);
    int64_t from_band_on = 0, found = 0, start = 0;
    for (int64_t part = 0; part < n_parts; start += sizes[part++]) {
        const Key *scores = parts[part];
        for (int64_t begin = 0; begin < sizes[part]; begin += BLOCK) {
            const int64_t end = std::min(begin + BLOCK, sizes[part]);
            int32_t at_least = 0, above = 0;
            for (int64_t i = begin; i < end; ++i) {  // no branch: the compiler makes vectors of it
                const Key key = std::fabs(scores[i]);
                at_least += key >= low;
                above += key > high;
            }
            from_band_on += at_least;
            if (at_least == above) continue;
            if (found + at_least - above > room) return -1;
            for (int64_t i = begin; i < end; ++i) {
                const Key key = std::fabs(scores[i]);
                if (key >= low && key <= high) {
                    positions[found] = start + i;
                    values[found++] = key;
                }
            }
        }
    }
    const int64_t kept = found - (from_band_on - k);
    if (kept <= 0 || kept > found) return -1;
    std::copy(values, values + found, ordered);
    std::nth_element(ordered, ordered + found - kept, ordered + found);
    const Key cut = ordered[found - kept];
    *threshold = cut;
    int64_t tied = kept;
    for (int64_t i = 0; i < found; ++i) tied -= values[i] > cut;
    for (int64_t i = 0; i < found; ++i) {
        if (values[i] == cut && --tied == 0) return positions[i];
    }
    return -1;
}

}  // namespace

extern "C" int64_t find_cut_of_floats(const float *const *parts, const int64_t *sizes, int64_t n_parts, int64_t k,
                                      double low, double high, int64_t room, int64_t *positions, float *values,
                                      float *ordered, double *threshold) {
    return find_cut(parts, sizes, n_parts, k, low, high, room, positions, values, ordered, threshold);
}

extern "C" int64_t find_cut_of_doubles(const double *const *parts, const int64_t *sizes, int64_t n_parts, int64_t k,
                                       double low, double high, int64_t room, int64_t *positions, double *values,
                                       double *ordered, double *threshold) {
    return find_cut(parts, sizes, n_parts, k, low, high, room, positions, values, ordered, threshold);
}
