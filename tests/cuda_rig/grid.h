// Runs whole grids: their blocks, in order or by chance, on the threads of the host that are there for it.
#pragma once
#include "block.h"

namespace rig {

// Returns when all blocks have ended, or with the first failure. Several grids may run at the same time.
Failure run_grid(const Launch &launch);

} // namespace rig
