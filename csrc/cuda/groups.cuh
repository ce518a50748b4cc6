// Who works together in steer and steer_slots: tokens of one slot form groups, the entries of a group become jobs.
#pragma once

#include "expand.cuh"

namespace sparsesteer::cuda {

constexpr int kRowsTogether = 4;  // rows that share the loads of x, where every block has several

// Up to kGroup tokens of one slot.
struct Group {
  int tokens[kGroup];
  int size;
  int first, count;  // its entries of the row table; none for tokens that keep their bits
  int bias;          // row of the bias, -1 for none
  int jobs_begin, jobs_end;
};

struct Groups {
  Group group[kMostEditTokens];
  int count, jobs, rows_together;
};

// First entry, number of entries and row of the bias of a slot; nothing for slots that do not exist.
__device__ inline void read_slot(const EditArgs& a, int slot, Group& group) {
  group.first = group.count = 0, group.bias = -1;
  if (slot < 0 || slot >= a.n_slots) return;
  if (!a.slots) {
    group.count = a.entries, group.bias = a.bias ? 0 : -1;
    return;
  }
  const int first = a.slots[3 * slot], count = a.slots[3 * slot + 1];
  if (first < 0 || count < 0 || first > a.entries - count) return;
  group.first = first, group.count = count, group.bias = a.slots[3 * slot + 2] ? slot : -1;
}

// One warp, a lane for each token: groups in the order of their first tokens, and how their entries become jobs.
__device__ inline void form_groups(const EditArgs& a, Groups& s) {
  const int lane = lane_id();
  const bool is_token = lane < a.tokens.n;
  int slot = is_token && strength_of(a.tokens, lane) != 0.0f ? (a.slot ? a.slot[lane] : 0) : -1;
  if (slot >= a.n_slots || slot < 0) slot = -1;
  unsigned same = __match_any_sync(kAllLanes, is_token ? slot : -2);
  const int members = __popc(same), place = __popc(same & lanes_below(lane));
  for (int i = 0; i < place / kGroup * kGroup; ++i) same &= same - 1;
  const int leader = __ffs(int(same)) - 1;
  const unsigned leaders = __ballot_sync(kAllLanes, is_token && leader == lane);
  const bool leads = leaders >> lane & 1u;
  Group& group = s.group[__popc(leaders & lanes_below(leader))];
  if (is_token) group.tokens[place % kGroup] = lane;
  if (leads) {
    group.size = min(kGroup, members - place);
    read_slot(a, slot, group);
  }
  __syncwarp();
  const int entries = leads ? group.count : 0;
  const int rows_together = warp_sum(entries) > 2 * int(gridDim.x) || a.alone ? kRowsTogether : 1;
  // a group that has a bias alone has one job too: its scale
  const int jobs = entries > 0 ? ceil_div(entries, rows_together) : leads && group.bias >= 0;
  const int jobs_end = warp_prefix_sum(jobs);
  if (leads) group.jobs_begin = jobs_end - jobs, group.jobs_end = jobs_end;
  if (lane == kWarp - 1) s.count = __popc(leaders), s.jobs = jobs_end, s.rows_together = rows_together;
}

}  // namespace sparsesteer::cuda
