// The mask of a rectifier, one bit an element, from and to bytes that are 0 or 1.
#pragma once

#include <cstdint>
#include <cstring>

namespace datagrad {
// Eight bytes 0 or 1 to one byte and back, eight at a time in a 64-bit word; element k is bit k (little endian).
inline void pack(const uint8_t* mask, int64_t count, uint8_t* bits) {
  for (int64_t i = 0; i < (count + 7) / 8; ++i) {
    uint64_t octet;
    std::memcpy(&octet, mask + 8 * i, 8);
    bits[i] = static_cast<uint8_t>((octet * 0x0102040810204080u) >> 56);
  }
}

inline void unpack(const uint8_t* bits, int64_t count, uint8_t* mask) {
  for (int64_t i = 0; i < (count + 7) / 8; ++i) {
    const uint64_t octet = (bits[i] * 0x0101010101010101u) & 0x8040201008040201u;
    std::memcpy(mask + 8 * i, &octet, 8);
  }
}

}  // namespace datagrad
