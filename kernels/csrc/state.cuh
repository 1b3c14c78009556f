// What a decode step reads and writes in device memory, so that a replayed graph needs no new arguments.
// kernels/state.py has the same structures for the host.
#pragma once

constexpr int MAX_STEP_TOKENS = 8;

enum Status : int {
  STATUS_BAD_TOKEN = 1,     // an id outside the token table
  STATUS_BAD_LOGITS = 2,    // NaN, +inf, or nothing but -inf
  STATUS_FULL = 4,          // a position at or beyond the cache's capacity
  STATUS_BAD_IMAGE_ROW = 8  // an image row that does not exist
};

struct DecodeState {
  int pos;     // filled positions of the slot before this step
  int slot;    // whose cache
  int step;    // of the answer: counter of the random numbers, and place in the ring
  int status;  // Status bits, set with atomicOr, cleared by the host
  int reserved[4];
  int token[MAX_STEP_TOKENS];  // ids that this step embeds; a sampler leaves the next one in token[0]
};

struct SampleParams {        // probabilities in double, as the host has them: a filter keeps the same tokens on both
  double top_p;              // 1: off
  double min_p;              // 0: off
  unsigned long long seed;
  float temperature;         // 0: the best token after the penalty
  float repetition_penalty;  // 1: off
  int top_k;                 // 0: off
  int reserved;
};

struct RingEntry {  // host-mapped; entry step % capacity
  int token;        // -1 with STATUS_BAD_LOGITS
  float logprob;    // natural logarithm of the token's probability under the model itself
  int sequence;     // step + 1, written last
  int status;       // state.status after the step
};

struct HeadPartial {  // of one tile of 16 rows of the LM head, for one token
  float max;
  int index;  // the lowest id with that logit; -1 when a logit is NaN or +inf
  float sum;  // of exp(logit - max)
  int reserved;
};
