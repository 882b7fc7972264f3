/* The source of the libraries beside it. scripts/cuda-stubs compiles it once for each of them.
 *
 * FUNCTIONS is a file with a line STUB(name) for each function of the library, from symbols.txt.
 */
#include <stdio.h>
#include <stdlib.h>

#define REMEDY "Install kdtrain[cuda] (in a clone: scripts/bootstrap --cuda), or use --device cpu."

static void end(const char *name)
{
    dprintf(2, "kdtrain: %s was called, but NVIDIA's libraries are not installed. " REMEDY "\n", name);
    abort();
}

#define STUB(name) void name(void) { end(#name); }
#include FUNCTIONS

#ifdef libcudnn_ops_infer_so_8
/* OneFlow asks for cuDNN's version when it traces a graph, on a CPU too. It logs the error and goes on. */
int cudnnGetProperty(int property, int *value) { return 1; } /* CUDNN_STATUS_NOT_INITIALIZED */
const char *cudnnGetErrorString(int status) { return "cuDNN is not installed. " REMEDY; }
#endif
