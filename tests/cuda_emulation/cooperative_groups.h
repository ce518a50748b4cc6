#pragma once

#include "machine.h"

namespace cooperative_groups {

struct Grid {
  void sync() const { emulation::machine().wait_for_grid(); }
};

inline Grid this_grid() { return {}; }

}  // namespace cooperative_groups
