"""Our samplers in other libraries' training loops, one module for each library.

| module | for | what it gives |
| --- | --- | --- |
| `tamis.integrations.huggingface` | transformers | `SamplerTrainer`, a Trainer |
| `tamis.integrations.lightning` | Lightning | `SamplerCallback` |
| `tamis.integrations.accelerate` | Accelerate | `prepare_loader` |
| `tamis.integrations.torchdata` | torchdata | `SamplerDataLoader`, a StatefulDataLoader |

Each needs its library, installed with the extra of the same name, as in ``pip install 'tamis[lightning]'``. This
package imports none of them.
"""
