// steer_slots on CPU tensors: tokens are grouped by slot, each group is steered as `steer` does it.
#include <ATen/Functions.h>

#include <algorithm>

#include "../check.h"
#include "../ops.h"
#include "kernels.h"
#include "token_args.h"

namespace sparsesteer {

namespace {

constexpr int64_t kGroupTokens = 48;  // that are one piece of work where several plans share the threads

void check_numbers(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
  check_table("steer_slots", name, tensor, shape, at::kInt);
}

// The tables of a bank, contiguous.
struct Slots {
  at::Tensor slots, encoder, decoder, entry_row, rows, bias;

  bool holds_plan(int32_t slot) const {
    if (slot < 0 || slot >= slots.size(0)) return false;
    const int32_t* line = slots.const_data_ptr<int32_t>() + 3 * slot;
    return line[1] != 0 || line[2] != 0;
  }

  // Sets what of `args` belongs to a slot. Raises for a slot that reaches beyond the tables.
  void put_plan(int32_t slot, SteerArgs& args) const {
    const int32_t* line = slots.const_data_ptr<int32_t>() + 3 * slot;
    const int64_t first = line[0], count = line[1];
    TORCH_CHECK(first >= 0 && count >= 0 && first + count <= rows.size(0), "steer_slots: slot ", slot, " has ", count,
                " entries from ", first, " on, but there are ", rows.size(0));
    args.entry_row = entry_row.const_data_ptr<int32_t>() + first;
    for (int64_t i = 0; i < count; ++i)
      TORCH_CHECK(args.entry_row[i] >= 0 && args.entry_row[i] < encoder.size(0), "steer_slots: entry ", first + i,
                  " names row ", args.entry_row[i], ", but there are ", encoder.size(0));
    const auto line_of = [](const at::Tensor& table, int64_t i) {
      return static_cast<const char*>(table.const_data_ptr()) + i * table.size(1) * table.element_size();
    };
    args.m = count, args.rows = line_of(rows, first);
    args.delta_bias = line[2] != 0 ? line_of(bias, slot) : nullptr;
  }
};

// The tokens of each slot in use, in pieces.
struct Groups {
  std::vector<int32_t> tokens;
  std::vector<SteerArgs> plans;

  Groups(const Slots& slots, const int32_t* slot, std::vector<int32_t> steered, const SteerArgs& common)
      : tokens(std::move(steered)) {
    std::stable_sort(tokens.begin(), tokens.end(), [slot](int32_t a, int32_t b) { return slot[a] < slot[b]; });
    const auto same = [&](size_t i, size_t j) { return slot[tokens[i]] == slot[tokens[j]]; };
    const size_t most = !tokens.empty() && same(0, tokens.size() - 1) ? tokens.size() : kGroupTokens;
    for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
      while (end < tokens.size() && same(begin, end) && end - begin < most) ++end;
      const bool again = begin > 0 && same(begin - 1, begin);
      plans.push_back(again ? plans.back() : common);
      if (!again) slots.put_plan(slot[tokens[begin]], plans.back());
      plans.back().tokens = tokens.data() + begin, plans.back().n = int64_t(end - begin);
    }
  }

  int64_t work() const {
    int64_t total = 0;
    for (const SteerArgs& plan : plans) total += rows_work(plan.n, plan.m * (plan.d + plan.d_out));
    return total;
  }
};

}  // namespace

void steer_slots_out(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                     const at::Tensor& slot_any, const at::Tensor& slots, const at::Tensor& encoder,
                     const at::Tensor& decoder, const at::Tensor& entry_row, const at::Tensor& rows,
                     const at::Tensor& slot_bias, const std::optional<at::Tensor>& token_strength, double strength,
                     int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm, at::Tensor& out) {
  const TokenTensors tokens("steer_slots", x, into, residual, token_strength);
  TORCH_CHECK(encoder.dim() == 2 && slots.dim() == 2 && entry_row.dim() == 1,
              "steer_slots: encoder and slots should be matrices, entry_row a vector");
  const int64_t n = x.size(0), d_out = into.size(1);
  const at::ScalarType compute = tokens.compute();
  check_numbers("slot", slot_any, {n});
  check_numbers("slots", slots, {slots.size(0), 3});
  check_numbers("entry_row", entry_row, {entry_row.size(0)});
  check_rows("steer_slots", "encoder", encoder, {encoder.size(0), x.size(1)}, compute);
  check_rows("steer_slots", "decoder", decoder, {encoder.size(0), d_out}, compute);
  check_dtype("steer_slots", "decoder", decoder, encoder.scalar_type());
  check_table("steer_slots", "rows", rows, {entry_row.size(0), N_COLUMNS}, compute);
  check_table("steer_slots", "slot_bias", slot_bias, {slots.size(0), d_out}, compute);
  const Slots bank{slots.contiguous(),     encoder.contiguous(), decoder.contiguous(),
                   entry_row.contiguous(), rows.contiguous(),    slot_bias.contiguous()};
  const at::Tensor slot = slot_any.contiguous();
  const int32_t* slot_of = slot.const_data_ptr<int32_t>();

  SteerArgs common = tokens.args("steer_slots", out, strength);
  common.encoder = bank.encoder.const_data_ptr(), common.decoder = bank.decoder.const_data_ptr();
  common.row_type = scalar_of("steer_slots", encoder.scalar_type());
  common.input_norm = int(input_norm), common.scale_rule = int(scale_rule), common.gap = gap;
  common.preserve_norm = preserve_norm;
  std::vector<int32_t> steered = live_tokens(common, n);
  std::erase_if(steered, [&](int32_t t) { return !bank.holds_plan(slot_of[t]); });
  const Groups groups(bank, slot_of, steered, common);
  copy_others(common, n, steered);
  if (!groups.plans.empty())
    SPARSESTEER_KERNEL(steer)(groups.plans.data(), int64_t(groups.plans.size()), thread_count(groups.work()));
}

at::Tensor steer_slots(const at::Tensor& x, const at::Tensor& into, const std::optional<at::Tensor>& residual,
                       const at::Tensor& slot, const at::Tensor& slots, const at::Tensor& encoder,
                       const at::Tensor& decoder, const at::Tensor& entry_row, const at::Tensor& rows,
                       const at::Tensor& slot_bias, const std::optional<at::Tensor>& token_strength, double strength,
                       int64_t input_norm, int64_t scale_rule, double gap, bool preserve_norm) {
  at::Tensor out = at::empty(into.sizes(), into.options());
  steer_slots_out(x, into, residual, slot, slots, encoder, decoder, entry_row, rows, slot_bias, token_strength,
                  strength, input_norm, scale_rule, gap, preserve_norm, out);
  return out;
}

}  // namespace sparsesteer
