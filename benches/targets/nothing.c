/* The shortest program: what starting a process costs, and what a preload adds to it. */
int main(void)
{
    return 0;
}
