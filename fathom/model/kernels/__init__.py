"""What a GPU runs while it generates: Triton kernels, each beside its plain PyTorch twin in the same file.

Every public function takes the same arguments on every device. Tensors on a GPU go through the kernel where Triton is
installed (extra `kernels`; CUDA builds of torch bring it), all others through the twin, which says in ten lines what is
computed. Under TRITON_INTERPRET=1 the kernels run on CPU tensors: so they are tested without a GPU.

| file | what |
|---|---|
| `decode.py` | one new token per row attends to a paged cache: latents, or keys and values of groups |
| `latent_fp8.py` | the same over latents kept in 656 bytes |
| `prefill.py` | many new tokens per sequence, causal, from a paged cache or from packed keys and values |
| `absorb.py` | what stands around latent attention: queries and cache entries before it, values after it |
| `gate.py` | the router: affinities in FP32, the experts chosen and weighed |
| `experts.py` | the chosen experts of few rows, shared ones beside them |
| `fused.py` | residual sum and norm; a latent cache entry normalised, turned and written |
| `graphed.py` | a step recorded once per shape and replayed |
| `launch.py` | one call of a kernel as data; kernels that begin before the one before has ended |
"""
